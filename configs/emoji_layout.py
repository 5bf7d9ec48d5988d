"""Scenes of emoji from boxes with labels (nine groups): layout to image.

    python train.py --config=configs/emoji_layout.py --workdir=runs/emoji_layout
    python sample.py --model=runs/emoji_layout \\
        --layout='[["Flags", [0.1, 0.1, 0.4, 0.4]], [6, [0.5, 0.5, 0.4, 0.4]]]'

Six objects at most are 20 tokens: three an object and two for the crop. Corners lie on
17 x 17 points, the edges of the latents' cells, so that a short training meets each of
them often; the published models have 90 x 90. Labels are the nine groups,
by name or number from 0: Activities, Animals & Nature, Flags, Food & Drink, Objects,
People & Body, Smileys & Emotion, Symbols, Travel & Places.
"""

from configs import common, emoji, emoji_scenes


def get_config(arg: str = ""):
    config = emoji.flow(emoji_scenes.base("layout"))
    # positions as large as tokens: they tell which corners belong to which label
    config.text.update(dict(max_length=20, vocab_size=300, position_std=1.0))
    # where a label is meant is given: a short training does not find it
    config.layout.within_boxes = True
    config.train.num_steps = 4000
    return common.finish(config, arg)
