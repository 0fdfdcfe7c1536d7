"""Text files in the encodings that editors leave."""

import codecs

import pytest

from volseg.config import read_config
from volseg.text import read_text

TEXT = '{"labels": {"Milz ä": 1}}\n'


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_a_byte_order_mark_says_the_encoding(tmp_path, mark, encoding):
    path = tmp_path / "names.json"
    path.write_bytes(mark + TEXT.encode(encoding))
    assert read_text(path) == TEXT


def test_what_is_no_such_text_is_named_by_its_line(tmp_path):
    path = tmp_path / "names.json"
    path.write_bytes('{\n"ä": 1}'.encode("latin-1"))
    with pytest.raises(ValueError, match="no UTF-8 at line 2; save it as UTF-8"):
        read_text(path)


def test_utf_16_without_its_mark_is_named(tmp_path):
    path = tmp_path / "names.json"
    path.write_bytes(TEXT.encode("utf-16-le"))
    with pytest.raises(ValueError, match="UTF-16 without its byte order mark; save it as UTF-8"):
        read_text(path)


def test_a_configuration_of_powershell_is_read(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes("[training]\nepochs = 7\n".encode("utf-16"))  # with its mark
    assert read_config(path).training.epochs == 7
