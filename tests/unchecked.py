"""The library as users run it, without the type checks of the suite: the package once more, imported under another name.

What the type checks would refuse first can be refused here by the library's own words, and their draws from Python's
generator do not count as ours.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import shapleycam

NAME = "unchecked_shapleycam"

if NAME not in sys.modules:  # pytest's search for doctests imports this file once more, under another name
    _spec = spec_from_file_location(NAME, shapleycam.__file__)
    sys.modules[NAME] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[NAME])
library = sys.modules[NAME]
