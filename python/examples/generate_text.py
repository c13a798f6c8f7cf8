"""Text from a directory with a model:  python generate_text.py directory [prompt]

The directory is one of Hugging Face (Llama, Mistral, Qwen, Gemma), or the output of train_model.py
or `flashmha train`.
"""

import sys

import flashmha

directory, prompt = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "import "
device = "cuda:0" if flashmha.num_gpus() > 0 else "cpu"
model = flashmha.Model.load(directory, device=device)

print(prompt, end="", flush=True)
result = model.generate(prompt, max_new_tokens=100, temperature=0.7, top_p=0.95, seed=1,
                        stop=["\n\n\n"], on_text=lambda row, text: print(text, end="", flush=True))
print(f"\n[{len(result.tokens)} tokens, ended by {result.finish_reason}]")
