"""Hydra's plugins of ours, as the wheel installs them below `hydra_plugins`.

That is a namespace package, which other distributions share: nothing but what lies in a folder here
goes there, and this file does not. Hydra imports every module below it in each Hydra app of the
environment, so what is there imports nothing but Hydra until it is used.
"""
