"""`python -m gadfly.grading LIMIT_S`: the process that grades, fed by `Grader` over pipes."""

from gadfly.grading.process import main

main()
