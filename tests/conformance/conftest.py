"""Lets the suites of this folder import the cases they run over, however pytest is started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
