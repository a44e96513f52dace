"""Program critic: check the arithmetic of a solution and repair it, without a model.

`critic.critique` answers one graded rollout. The text goes through `expressions` (tokens, exact values) and `equations`
(chains, true or false); `critic` finds the first error with the help of `repair` and `continuation`. Checks and error
injection read equations with the same parser.
"""
