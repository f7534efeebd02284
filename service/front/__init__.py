"""The OpenAI front: /v1/models and /v1/chat/completions, over the same answers and records as /critique."""
