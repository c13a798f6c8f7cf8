"""A language model trained by the C++ library alone:  python train_model.py [output] [text ...]

Text files and folders of them; without any, the examples of this folder. Run it again and it goes
on where it was interrupted. `generate_text.py output` lets the model write.
"""

import pathlib
import sys

import flashmha

output = sys.argv[1] if len(sys.argv) > 1 else "trained"
texts = sys.argv[2:] or [pathlib.Path(__file__).parent]
device = "cuda:0" if flashmha.num_gpus() > 0 else "cpu"

tokenizer = flashmha.Tokenizer.bytes()
model = flashmha.Model.new(tokenizer, num_layers=2, hidden_size=96, num_heads=4, device=device)
training, held_out = flashmha.PackedDataset.from_files(texts, tokenizer, seq_length=128,
                                                       eval_fraction=0.1)
print(f"{model}\n{training.num_documents} documents, {training.num_tokens} tokens")

trainer = flashmha.Trainer(model, training, held_out, output=output, num_steps=150, batch_size=4,
                           learning_rate=4e-3)
first = trainer.resume()
if first > 0:
    print(f"resumed after step {first}")


def show(record):
    if record.eval_loss is not None:
        loss = "" if record.loss is None else f"loss {record.loss:.3f}, "
        print(f"step {record.step:4d}: {loss}held out {record.eval_loss:.3f}", flush=True)


result = trainer.run(on_step=show)
print(f"{result.end} after step {result.step}: loss {result.loss or float('nan'):.3f}")
