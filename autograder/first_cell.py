"""The first cell of every notebook: it finds the course, or says what to do.

Its text is that of `find_course`, called with what is known where the notebook is built: this
version of the course, and the address that pip installs it from.
"""

import inspect
from importlib.metadata import version

from autograder.course import ADDRESS

RUN_ME = "# Run this cell first: click on it and press Shift + Enter. If all is well, it is silent."


def find_course(made_for: str, address: str) -> None:
    import sys
    from importlib.metadata import distributions

    from IPython import get_ipython
    from IPython.core.error import UsageError  # shown without a traceback

    def installed() -> str:
        return next((course.version for course in distributions(name="llmkit-course")), "")

    def numbers(version: str) -> list[int]:
        return [int(number) for number in version.split(".") if number.isdigit()]

    # In Colab, pip may change nothing that is there: it would break. What is lacking is gguf alone.
    colab = "google.colab" in sys.modules
    install = f"install {'--no-deps gguf ' if colab else ''}{address or 'ADDRESS'}"
    by_pip = f"run %pip {install} in a new cell"
    if not address:
        by_pip += " (your instructor knows the ADDRESS)"

    if colab and address and not installed():
        get_ipython().run_line_magic("pip", install)
    if colab and not installed():
        raise UsageError(f"Colab does not have the course.\nPlease {by_pip}, then this one again.")
    if not installed():
        raise UsageError(
            f"The Python of this kernel does not have the course: {sys.executable}\n"
            "Choose the course's kernel in the menu Kernel > Change Kernel,\n"
            "or start JupyterLab with make lab in the course's folder,\n"
            f"or {by_pip}."
        )
    if numbers(installed()) < numbers(made_for):
        raise UsageError(
            f"This notebook was made for version {made_for} of the course, and version "
            f"{installed()} is here.\n"
            "Run git pull and make lab in the course's folder,\n"
            f"or {by_pip}.\n"
            "Then restart the kernel."
        )


def first_cell() -> str:
    """Its source, the same for every chapter."""
    call = f"find_course(made_for={version('llmkit-course')!r}, address={ADDRESS!r})"
    return f"{RUN_ME}\n{inspect.getsource(find_course)}\n\n{call}"
