"""Coded names of segments: SNOMED CT terms for common organs, found by a label's name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# A label's name without its side -> the keyword of the term in pydicom's dictionary of SNOMED CT codes.
ORGANS = {
    "adrenal gland": "AdrenalGland", "adrenal": "AdrenalGland", "aorta": "Aorta", "atrium": "Atrium",
    "bladder": "Bladder", "urinary bladder": "Bladder", "bone": "Bone", "brain": "Brain", "brainstem": "BrainStem",
    "cerebellum": "Cerebellum", "clavicle": "Clavicle", "clavicula": "Clavicle", "colon": "Colon",
    "costal cartilages": "CostalCartilage", "duodenum": "Duodenum", "esophagus": "Esophagus", "oesophagus": "Esophagus",
    "eye": "Eye", "face": "Face", "femur": "Femur", "gallbladder": "Gallbladder", "gall bladder": "Gallbladder",
    "heart": "Heart", "hip": "Hip", "humerus": "Humerus", "iliac artery": "IliacArtery", "iliac vena": "IliacVein",
    "iliac vein": "IliacVein", "inferior vena cava": "InferiorVenaCava", "kidney": "Kidney",
    "liver": "Liver", "lung": "Lung", "lung lower lobe": "LowerLobeOfLung", "lung upper lobe": "UpperLobeOfLung",
    "mandible": "Mandible", "pancreas": "Pancreas", "parotid gland": "ParotidGland", "portal vein": "PortalVein",
    "prostate": "Prostate", "pulmonary artery": "PulmonaryArtery", "pulmonary vein": "PulmonaryVein",
    "rectum": "Rectum", "rib": "Rib", "sacrum": "Sacrum", "scapula": "Scapula", "skin": "Skin", "skull": "Skull",
    "small bowel": "SmallIntestine", "small intestine": "SmallIntestine", "spinal cord": "SpinalCord",
    "spleen": "Spleen", "sternum": "Sternum", "stomach": "Stomach", "superior vena cava": "SuperiorVenaCava",
    "thyroid": "Thyroid", "thyroid gland": "Thyroid", "trachea": "Trachea", "vertebra": "Vertebra",
    "vertebrae": "Vertebra",
}  # fmt: skip
FINDINGS = {
    "cyst": "Cyst", "kidney cyst": "Cyst", "lesion": "Lesion", "mass": "Mass", "neoplasm": "Neoplasm",
    "nodule": "Nodule", "lung nodule": "Nodule", "tumor": "Neoplasm", "tumour": "Neoplasm",
    "liver tumor": "Neoplasm", "kidney tumor": "Neoplasm",
}  # fmt: skip
SIDES = {"left": "Left", "right": "Right", "l": "Left", "r": "Right"}
LEVEL = re.compile(r"(?:[clt]|s)\d{1,2}")


@dataclass(frozen=True)
class Property:
    """What a segment is: coded category and type, and the side of a paired organ (None where it has none)."""

    category: Any
    type: Any
    side: Any = None


def property_of(name: str) -> Property:
    """The codes for a label's name: ``kidney_left``, ``Left kidney`` or ``vertebrae_L1`` (told by its level).

    A name that is not in the table is a tissue: the label of the segment says which.
    """
    from pydicom.sr.codedict import codes

    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    sides = [SIDES[word] for word in words if word in SIDES]
    words = [word for word in words if word not in SIDES]
    side = getattr(codes.SCT, sides[0]) if len(sides) == 1 else None
    organ = " ".join(words)
    level = words[-1].upper() if len(words) == 2 and LEVEL.fullmatch(words[-1]) else ""
    if words[:1] in (["vertebra"], ["vertebrae"]) and f"{level}Vertebra" in dir(codes.SCT):
        return Property(codes.SCT.AnatomicalStructure, getattr(codes.SCT, f"{level}Vertebra"))
    if words[:1] == ["rib"] and words[-1].isdigit():
        organ = "rib"
    if organ in ORGANS:
        return Property(codes.SCT.AnatomicalStructure, getattr(codes.SCT, ORGANS[organ]), side)
    if organ in FINDINGS:
        return Property(codes.SCT.MorphologicallyAbnormalStructure, getattr(codes.SCT, FINDINGS[organ]), side)
    return Property(codes.SCT.Tissue, codes.SCT.Tissue)
