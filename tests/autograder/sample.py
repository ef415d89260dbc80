"""A chapter of two exercises and a written answer, for the tests of building and reading."""

from autograder.check import Case, Check, Misconception, Question


def double(x):
    return 2 * x


def square(x):
    return x * x


EXERCISES = {
    "double": Check(double, 4, lambda rng: [Case(3)], [Misconception("halves", square, "Why?")]),
    "best": Question("best", 3, points=2),
    "square": Check(square, 1, lambda rng: [Case(3)], []),
}

SOURCE = '''\
# A sample

```python
from autograder import check, check_answer
```

Double it.


```python
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION
```

```python
check(double)
```

```python
### BEGIN SOLUTION
answer = 3
### END SOLUTION
```

```python
check_answer("best", answer)
```

```python tags=["demo"]
raise RuntimeError("a demo is not run in grading")
```

<!-- #region written=why points=3 -->
### BEGIN SOLUTION
Because doubling is adding to itself.
### END SOLUTION
<!-- #endregion -->

```python
picture = [double(x) for x in range(3)]
```

```python
def square(x):
    ### BEGIN SOLUTION
    return x**2
    ### END SOLUTION
```

```python
check(square)
```
'''
