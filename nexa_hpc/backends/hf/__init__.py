"""Training and evaluation with transformers, datasets, peft and scikit-learn.

    installed, checks, hub, sources, gentle     light: planning imports them, no library
    rows, models, recipes, arguments,
    sampling, callbacks, training, curves, card `runners.train`
    scoring, perplexity, plots, report,
    evaluation                                  `runners.eval`

The second and third groups import the libraries and are themselves imported inside functions only.
"""
