"""Do the work of `noisin train` up to its first step on the Penn Treebank, and print the time (seconds since 1970)."""

import json
import sys
import time

from noisin.commands.train import run  # the command loads it too
from noisin.config import Config
from noisin.data.batches import training_batches
from noisin.data.corpus import load_corpus
from noisin.model import initial_model
from noisin.system.device import find_device
from noisin.system.errors import UserError
from noisin.training import TrainingStep

assert callable(run)
config = Config(corpus="ptb", method="noisin")
try:
    corpus = load_corpus("ptb", download=False)
except UserError as error:
    sys.exit(str(error))
device = find_device("auto")
step = TrainingStep(initial_model(config, len(corpus.vocabulary), device), config, device)
step(*next(iter(training_batches(corpus.train, config.batch_size, config.unroll))))
print(json.dumps(time.time()))
