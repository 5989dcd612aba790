"""A bar for what trains in a notebook: it moves by step, says the loss and the time left, and goes when it is done."""

from tqdm.auto import tqdm

from minilora.claims.bases import follow


class StepBar:
    """The `callback` of one training."""

    def __init__(self, steps):
        form = "{n_fmt}/{total_fmt} |{bar}| {desc}, {remaining} left"
        self.bar = tqdm(total=steps, desc="loss ?", leave=False, bar_format=form)

    def __call__(self, done, loss):
        self.bar.set_description_str(f"loss {loss:.3f}", refresh=False)
        self.bar.update(done - self.bar.n)
        if done == self.bar.total:
            self.bar.close()


def show_progress():
    """From now on every training by `adapt`, `learn` and `run` of minilora.claims shows its bar."""
    bars = []

    def show(done, steps, loss):
        if not bars or done <= bars[-1].bar.n:  # another training has begun, or the one before has diverged
            bars[:] = [StepBar(steps)]
        bars[-1](done, loss)

    follow(show)
