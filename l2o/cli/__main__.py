"""``python -m l2o.cli``, as torchrun starts it."""

import sys

from l2o.cli.main import main

sys.exit(main())
