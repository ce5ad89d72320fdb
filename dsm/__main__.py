"""``python -m dsm``: the same as the ``dsm`` command."""

import sys

from dsm.cli import main

sys.exit(main())
