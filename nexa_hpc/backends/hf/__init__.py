"""Training and evaluation with transformers, datasets, peft and scikit-learn.

    installed, checks, hub, sources, gentle,
    addresses, peeking                          light: planning imports them, no library
    rows, models, recipes, arguments,
    sampling, callbacks, training, curves, card `runners.train`
    scoring, perplexity, generation, chats,
    losses, local_model, endpoint, opening,
    plots, report, evaluation                   `runners.eval`

The second and third groups import the libraries and are themselves imported inside functions only.
"""
