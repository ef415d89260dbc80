"""What `make demo` shows: a class of synthetic students, graded as they were built to be."""

from autograder.demo.rehearsal import compare, run
from autograder.demo.synthetic import Synthetic, make_class, write_class

__all__ = ["Synthetic", "compare", "make_class", "run", "write_class"]
