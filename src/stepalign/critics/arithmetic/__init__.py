"""Program critic: check the arithmetic of a solution and repair it, without a model.

`critic.critique` answers one graded rollout; `critic.ProgramCritic` is the critic of `critic.kind = "program"`. The
text goes through `lexer` (tokens), `expressions` (exact values) and `equations` (chains, true or false). `correct`
finds the first error with the help of `repair` and `continuation`. Checks and error injection read equations
with the same parser.
"""
