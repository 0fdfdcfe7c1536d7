"""Data sets as people have them: which files are a case, which channels and labels there are."""

from volseg.volumes.dataset.case import Case, Dataset, DataSource, Fault
from volseg.volumes.dataset.description import (
    check_labels,
    image_name,
    read_ignored_value,
    read_label_names,
    read_regions,
    write_dataset_json,
)
from volseg.volumes.dataset.reading import read_dataset, survey_dataset
from volseg.volumes.dataset.references import description_near, reference_labels
from volseg.volumes.file_names import DESCRIPTION, FILE_ENDINGS, IMAGES, LABELS

__all__ = [
    "DESCRIPTION", "FILE_ENDINGS", "IMAGES", "LABELS", "Case", "DataSource", "Dataset", "Fault", "check_labels",
    "description_near", "image_name", "read_dataset", "read_ignored_value", "read_label_names", "read_regions",
    "reference_labels", "survey_dataset", "write_dataset_json",
]  # fmt: skip
