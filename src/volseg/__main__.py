"""``python -m volseg``."""

from volseg.cli.app import main

main()
