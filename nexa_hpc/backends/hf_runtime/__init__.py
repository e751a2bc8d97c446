"""`hf_runtime`: a model of transformers behind OpenAI's endpoints, for machines without vLLM.

options                           light: what planning checks, and the command that starts it
batching, generating, classifying the model's side: batches of what waits, bounded
bodies, app, main                 the interface: what requests say, FastAPI, uvicorn
"""
