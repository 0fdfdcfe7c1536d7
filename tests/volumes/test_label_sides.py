"""Labels of one organ on two sides, by their names."""

import pytest

from volseg.volumes.label_sides import sided_pairs


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("kidney_left", "kidney_right"),
        ("Left-Kidney", "Right-Kidney"),
        ("left kidney", "right kidney"),
        ("Kidney L", "Kidney R"),
        ("kidney_l", "kidney_r"),
        ("L_Kidney", "R_Kidney"),
        ("Parotid_Lt", "Parotid_Rt"),
        ("ctx-lh-bankssts", "ctx-rh-bankssts"),
        ("KidneyLeft", "KidneyRight"),
        ("LKidney", "RKidney"),
        ("leftkidney", "rightkidney"),
        ("lung_upper_lobe_left", "lung_upper_lobe_right"),
        ("Niere links", "Niere rechts"),
        ("linke Niere", "rechte Niere"),
        ("rein gauche", "rein droit"),
        ("riñón izquierdo", "riñón derecho"),
        ("rene sinistro", "rene destro"),
        ("rib_left_1", "rib_right_1"),
        ("clavicula sin", "clavicula dex"),
        ("Eye_L", "Eye_R"),
        ("left", "right"),
    ],
)
def test_a_pair_of_sides_is_found(left, right):
    assert sided_pairs(["background", right, left, "spleen"]) == [(left, right)]


@pytest.mark.parametrize(
    "names",
    [
        ["liver", "spleen"],
        ["kidney_left", "spleen"],
        ["rib_left_1", "rib_right_2"],
        ["vertebrae_L1", "vertebrae_T12"],
        ["vertebrae_L1", "vertebrae_L2"],
        ["tumor", "tumour"],
        ["label 1", "label 2"],
        ["lung", "rung"],
        ["class_1", "class_2"],
    ],
)
def test_other_names_are_no_sides(names):
    assert sided_pairs(names) == []
