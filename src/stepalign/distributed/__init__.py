"""Training in several processes: the process group, and the strategies that divide a step over it."""
