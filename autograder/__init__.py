"""Exercises, checked: `check(function)` in a notebook, and whole classes graded in a sandbox."""

from autograder.check import Case, Check, Misconception, Question
from autograder.practice import check, check_answer

__all__ = ["Case", "Check", "Misconception", "Question", "check", "check_answer"]
