"""`python -m mmrt`: the same as the command `mmrt`."""

import sys

from mmrt.cli import main

sys.exit(main())
