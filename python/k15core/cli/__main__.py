"""`python -m k15core.cli` is `k15`."""

import sys

from k15core.cli import main

sys.exit(main())
