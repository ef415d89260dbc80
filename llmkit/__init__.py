"""llmkit: large language models, from the first n-gram to a working Llama, one module per chapter.

Importing the package imports nothing else; import the module you want, e.g. `llmkit.attention`.
"""

__version__ = "0.1.0"
