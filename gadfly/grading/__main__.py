"""`python -m gadfly.grading LIMIT_S`: the grading process, which `Grader` feeds over pipes."""

from gadfly.grading.process import main

main()
