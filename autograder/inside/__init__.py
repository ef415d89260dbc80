"""The only room that a submission can see: what is mounted inside the sandbox.

Nothing here imports the rest of autograder or llmkit, and nothing here knows an expected value.
"""
