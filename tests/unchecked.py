"""The library as users run it, without the type checks of the suite: the package once more, imported under another name.

What the type checks would refuse first can be refused here by the library's own words, and their draws from Python's
generator do not count as ours.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import shapleycam

_spec = spec_from_file_location("unchecked_shapleycam", shapleycam.__file__)
library = module_from_spec(_spec)
sys.modules[_spec.name] = library
_spec.loader.exec_module(library)
