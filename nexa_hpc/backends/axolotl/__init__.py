"""Training with axolotl's own command line, in axolotl's own environment.

    settings                 which params are ours, which names axolotl's config may not hold
    schema, schema_program   what axolotl's own schema says of a config; asked at planning
    configuring              from a `Task` to the config that axolotl is given
    output, checkpoints      what a running training prints and leaves behind
    publishing               from axolotl's output folder to a checkpoint artifact

axolotl is never imported in a process of ours: `schema_program` runs as a process of its own, and
`runners/train_axolotl.py` starts axolotl's command line. Standard library and PyYAML alone.
"""
