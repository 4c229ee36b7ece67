"""Many methods on the same models and images: `knownot benchmark`.

A new training, score, data set or protocol is one entry: in `trainings`, `scores`, `image_sets`,
`protocols`. A benchmark is a YAML file, see `config`.
"""
