"""Hydra's door: composing pipelines and the site's configuration, once, on the submitting host.

Hydra and OmegaConf are imported by nobody else, and here only inside of functions: a run whose file
needs no composing does not pay for them.
"""
