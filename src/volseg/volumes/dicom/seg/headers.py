"""The scan's header values as they may stand in a DICOM object: text in UTF-8, of each kind what the standard allows.

A Segmentation repeats what its scan says of patient, study and equipment. Scanners, archives and anonymisers write much
there that no standard allows, and whoever makes an object of it is refused by its library or by the archive. So values
are brought into the form that DICOM asks for where their meaning is certain, and left empty where it is not.
Kinds of values (VR): https://dicom.nema.org/medical/dicom/current/output/chtml/part05/sect_6.2.html
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from volseg.volumes.dicom.seg.text import decoded

WHOLE_GROUPS = (0x0010, 0x0012)  # patient, clinical trial
REPEATED = (
    "StudyDate", "StudyTime", "AccessionNumber", "IssuerOfAccessionNumberSequence", "ReferringPhysicianName",
    "ReferringPhysicianIdentificationSequence", "ConsultingPhysicianName", "PhysiciansOfRecord", "StudyDescription",
    "ProcedureCodeSequence", "AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence",
    "ReferencedStudySequence", "NameOfPhysiciansReadingStudy", "Modality", "Manufacturer", "ManufacturerModelName",
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "SeriesDescription",
    "DeviceSerialNumber", "SoftwareVersions", "StudyID", "SeriesNumber", "PositionReferenceIndicator",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "AdmissionID",
    "ReasonForPerformedProcedureCodeSequence",
)  # fmt: skip
SHORTEST_SHOWN = 20  # characters of a value in a message
LONGEST = {
    "AE": 16,
    "CS": 16,
    "LO": 64,
    "LT": 10240,
    "PN": 64,
    "SH": 16,
    "ST": 1024,
    "UC": None,
    "UR": None,
    "UT": None,
}
PARAGRAPHS = ("LT", "ST", "UT")  # which may hold line ends, and backslashes
IDENTIFYING = ("SH", "PN", "AE", "CS")  # of several values, or a longer one, no part may stand for the whole
IDENTIFYING_KEYWORDS = ("PatientID", "OtherPatientIDs", "IssuerOfPatientID")
SEXES = {"MALE": "M", "FEMALE": "F", "OTHER": "O"}
PRIVATE = ("PatientName", "PatientID", "PatientBirthDate", "ReferringPhysicianName")  # not shown in a message


@dataclass
class Remarks:
    """What became of values that DICOM does not allow: their keywords; of those left empty the value too, mostly."""

    emptied: list[str] = field(default_factory=list)
    shortened: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each kind."""
        kinds = (
            (self.emptied, "left empty, for DICOM does not allow the value: "),
            (self.shortened, "shortened to what DICOM allows: "),
            (self.guessed, "read as Latin-1, for the character set is not given: "),
        )
        return [text + ", ".join(dict.fromkeys(names)) for names, text in kinds if names]


def admissible(dataset: Any, remarks: Remarks) -> Any:
    """A new data set of what a Segmentation repeats of `dataset`, in the form that DICOM allows, text for UTF-8.

    What is not allowed is left empty (an item of a sequence: left out with its sequence) and goes to `remarks`.
    """
    from pydicom.datadict import keyword_for_tag
    from pydicom.dataset import Dataset

    out = Dataset()
    for tag in sorted(dataset.keys()):
        keyword = keyword_for_tag(tag)
        if keyword and (tag.group in WHOLE_GROUPS or keyword in REPEATED):
            element = _element(dataset, tag, keyword, _character_set(dataset), remarks)
            if element is not None:
                out.add(element)
    return out


def number_of(dataset: Any, keyword: str) -> int:
    """A whole number of 0 or more; 0 where there is none."""
    try:
        return max(0, int(float(str(dataset.get(keyword) or 0))))
    except (ValueError, OverflowError, TypeError, AttributeError):
        return 0


def text_of(dataset: Any, keyword: str, default: str) -> str:
    """One line of text."""
    return str(dataset.get(keyword) or "").strip() or default


def parts_of(value: Any) -> list[Any]:
    """The values of an element, of one or several."""
    if value is None:
        return []
    return list(value) if hasattr(value, "append") else [value]  # pydicom has a kind of list of its own


def _character_set(dataset: Any) -> list[str]:
    """The values of SpecificCharacterSet, in whatever form they are."""
    from pydicom.tag import Tag

    try:
        item = dataset.get_item(Tag("SpecificCharacterSet"))
    except KeyError:
        return []
    value = getattr(item, "value", None)
    if isinstance(value, bytes):
        return [part.strip(" \0") for part in value.decode("ascii", "replace").split("\\")]
    return [str(part) for part in parts_of(value)]


def _element(dataset: Any, tag: Any, keyword: str, character_set: list[str], remarks: Remarks) -> Any:
    """The element as it may stand, None to leave it out."""
    from pydicom.datadict import dictionary_VM, dictionary_VR
    from pydicom.dataelem import DataElement

    kind = dictionary_VR(tag)
    if kind == "SQ":
        items = _items(dataset, tag, character_set, keyword, remarks)
        return None if items is None else DataElement(tag, kind, items)
    if kind not in RULES and kind not in LONGEST:
        try:
            return dataset[tag]
        except Exception:  # pydicom reports damage by many types
            return None
    values, guessed = _values(dataset.get_item(tag), kind, character_set)
    if values is None:
        remarks.emptied.append(keyword)
        return DataElement(tag, kind, "")
    if guessed:
        remarks.guessed.append(keyword)
    several = dictionary_VM(tag) != "1"
    return DataElement(tag, kind, _allowed(values, kind, keyword, several, remarks))


def _items(dataset: Any, tag: Any, character_set: list[str], keyword: str, remarks: Remarks) -> list[Any] | None:
    """The items of a sequence; None, with a remark, where one of them holds what is not allowed."""
    from pydicom.datadict import keyword_for_tag
    from pydicom.dataset import Dataset

    inside, out = Remarks(), []
    try:
        for item in dataset[tag].value:
            copy, own = Dataset(), _character_set(item) or character_set
            for child in sorted(item.keys()):
                name = keyword_for_tag(child)
                element = _element(item, child, name, own, inside) if name and name != "SpecificCharacterSet" else None
                if element is not None:
                    copy.add(element)
            out.append(copy)
    except Exception:  # pydicom reports damage by many types
        inside.emptied.append(keyword)
    remarks.guessed += [keyword] * bool(inside.guessed)
    if inside.emptied:
        remarks.emptied.append(keyword)
        return None
    return out


def _values(item: Any, kind: str, character_set: list[str]) -> tuple[list[str] | None, bool]:
    """The values as text, None where its bytes are none; and whether the character set had to be guessed."""
    value = item.value
    if isinstance(value, bytes):
        text, guessed = decoded(value, character_set, names=kind == "PN")
        if text is None:
            return None, False
        return (text.split("\\") if kind not in PARAGRAPHS else [text]), guessed
    return [str(part) for part in parts_of(value)], False


def _allowed(values: list[str], kind: str, keyword: str, several: bool, remarks: Remarks) -> Any:
    """The values in the form that DICOM allows; empty, with a remark, where there is none."""
    values = [_plain(value, kind) for value in values]
    shown = "\\".join(values)
    if not several and len(values) > 1:
        values = _as_one(values, kind, keyword)
    out, shortened = [], False
    for value in values:
        rule = RULES.get(kind, _text)
        fitting = "" if value == "" else _sex(value) if keyword == "PatientSex" else rule(value)
        if fitting is not None and LONGEST.get(kind) is not None and kind not in RULES:
            fitting, cut = _shortened(fitting, kind, keyword)
            shortened |= cut
        if fitting is None:
            quoted = shown if len(shown) <= SHORTEST_SHOWN else shown[:SHORTEST_SHOWN] + "..."
            remarks.emptied.append(keyword if keyword in PRIVATE[:2] or kind == "PN" else f"{keyword} {quoted!r}")
            return ""
        out.append(fitting)
    if shortened:
        remarks.shortened.append(keyword)
    return out if len(out) > 1 else "".join(out)


def _plain(value: str, kind: str) -> str:
    """Without padding, and without the control characters that this kind may not hold."""
    keep = "\r\n\t\f" if kind in PARAGRAPHS else ""
    text = "".join(letter if letter in keep or letter.isprintable() else " " for letter in value.strip(" \0\t\r\n"))
    return text.rstrip() if kind in PARAGRAPHS else text.strip()


def _as_one(values: list[str], kind: str, keyword: str) -> list[str]:
    """One value for several where one is allowed: the same, or a text with all; else one that no rule lets pass."""
    different = list(dict.fromkeys(value for value in values if value))
    if len(different) <= 1:
        return different
    text = kind in ("LO", *PARAGRAPHS) and keyword not in IDENTIFYING_KEYWORDS
    return ["/".join(different)] if text else ["\\"]


def _shortened(value: str, kind: str, keyword: str) -> tuple[str | None, bool]:
    """The value within its kind's length, and whether it was cut; None where a part may not stand for the whole."""
    limit = LONGEST[kind]
    assert limit is not None
    if kind == "PN":
        groups = [group[:limit].rstrip() for group in value.split("=")[:3]]
        fitting = "=".join("^".join(group.split("^")[:5]) for group in groups)
        return fitting, fitting != value
    if len(value) <= limit:
        return value, False
    if kind in IDENTIFYING or keyword in IDENTIFYING_KEYWORDS:
        return None, False
    return value[:limit].rstrip(), True


def _text(value: str) -> str | None:
    return None if value == "\\" else value


def _sex(value: str) -> str | None:
    """M, F or O; written out, or in small letters, they are sure too."""
    code = SEXES.get(value.upper(), value.upper())
    return code if code in SEXES.values() else None


def _code(value: str) -> str | None:
    code = value.upper()
    return code if re.fullmatch(r"[A-Z0-9 _]{1,16}", code) else None


def _date(value: str) -> str | None:
    """YYYYMMDD, of that or YYYY.MM.DD, YYYY-MM-DD, YYYY/MM/DD: a day that there is."""
    parts = re.fullmatch(r"(\d{4})([.\-/]?)(\d{2})\2(\d{2})", value, re.ASCII)
    try:
        return datetime.date(int(parts[1]), int(parts[3]), int(parts[4])).strftime("%Y%m%d").zfill(8) if parts else None
    except ValueError:
        return None


def _time(value: str) -> str | None:
    """HHMMSS.FFFFFF or a beginning of it, of that or with colons."""
    parts = re.fullmatch(r"([01]\d|2[0-3])(?:(:?)([0-5]\d)(?:\2([0-5]\d|60)(?:\.(\d+))?)?)?", value, re.ASCII)
    if parts is None:
        return None
    whole = parts[1] + (parts[3] or "") + (parts[4] or "")
    return whole + (f".{parts[5][:6]}" if parts[5] else "")


def _moment(value: str) -> str | None:
    parts = re.fullmatch(
        r"(\d{8})(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)?([+-](?:0\d|1[0-4])[0-5]\d)?", value, re.ASCII
    )
    if parts is None or _date(parts[1]) is None or (parts[2] and _time(parts[2]) is None):
        return None
    return value


def _age(value: str) -> str | None:
    parts = re.fullmatch(r"(\d{1,3})([DWMY])", value.upper(), re.ASCII)
    return f"{int(parts[1]):03}{parts[2]}" if parts else None


def _integer(value: str) -> str | None:
    parts = re.fullmatch(r"[+-]?\d{1,12}", value, re.ASCII)
    return str(int(value)) if parts and -(2**31) <= int(value) < 2**31 else None


def _decimal(value: str) -> str | None:
    from pydicom.valuerep import format_number_as_ds

    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", value, re.ASCII) is None:
        return None
    try:
        return value if len(value) <= 16 else format_number_as_ds(float(value))
    except (ValueError, OverflowError):
        return None


def _identifier(value: str) -> str | None:
    return value if is_uid(value) else None


def is_uid(value: str, *, zeros: bool = False) -> bool:
    """Whether a text is a UID; with `zeros` also where a component of it begins with zeros, which archives bear."""
    number = r"\d+" if zeros else r"(0|[1-9]\d*)"
    return len(value) <= 64 and re.fullmatch(rf"{number}(\.{number})*", value, re.ASCII) is not None


RULES: dict[str, Callable[[str], str | None]] = {
    "AS": _age, "CS": _code, "DA": _date, "DS": _decimal, "DT": _moment, "IS": _integer, "TM": _time, "UI": _identifier,
}  # fmt: skip
