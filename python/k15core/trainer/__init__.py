"""Trainers behind one protocol (`k15core.types.Trainer`), and the supervised warm-up before RL."""

TRAINERS = {
    "torch": "k15core.trainer.torch:TorchTrainer",
    "megatron": "k15core.trainer.megatron:MegatronTrainer",
}
"""Kind in a recipe, and where its class is; a new trainer needs a file and a line here."""
