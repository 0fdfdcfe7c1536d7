"""Data sets as people have them: which files are a case, which channels and labels there are."""

from volseg.volumes.dataset.case import FILE_ENDINGS, Case, Dataset, DataSource, Fault
from volseg.volumes.dataset.described import IMAGES, LABELS
from volseg.volumes.dataset.description import (
    DESCRIPTION,
    check_labels,
    image_name,
    read_label_names,
    write_dataset_json,
)
from volseg.volumes.dataset.reading import read_dataset, survey_dataset

__all__ = [
    "DESCRIPTION", "FILE_ENDINGS", "IMAGES", "LABELS", "Case", "DataSource", "Dataset", "Fault", "check_labels",
    "image_name", "read_dataset", "read_label_names", "survey_dataset", "write_dataset_json",
]  # fmt: skip
