"""A small text tower of OpenCLIP, what it answers, and what its tokenizer says.

    python -m tests.reference.record_open_clip

writes open_clip.npz beside this file; it needs open_clip_torch 3.3, which no test does.
`entries` ("name sides") of the tower's state dict as Stable Diffusion 2 stores it,
without the image tower; tokens; per activation the last and the penultimate state, both
after the final norm, and the projected text. Weights are functions of names (`rule`).
`texts` and `ids` are the tokenizer's.
"""

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer

from tests.reference import rule

TEXTS = [
    "",
    "a photo of a cat",
    "A Photo   of\n\ta CAT!!! it's 2024, don't I'LL we've",
    "a virus monster is playing guitar, oil on canvas",
    "caf\u00e9 cafe\u0301 \u00c5land stra\u00dfe \u0130stanbul",
    "1234567890 3.50$ 50% #5 (a)[b]{c} a/b_c ~ ^ | ... ---",
    "東京タワー 北京 서울 привет",
    "\U0001f600 \U0001f469\u200d\U0001f680 \u2764\ufe0f between words",
    "antidisestablishmentarianism qzxvj supercalifragilisticexpialidocious",
    "word " * 100,
]
LENGTH, END = 12, 39


def build(quick_gelu: bool) -> torch.nn.Module:
    """CLIP without its image tower, with weights by the rule."""
    vision = CLIPVisionCfg(
        layers=1, width=32, head_width=16, image_size=8, patch_size=4
    )
    text = CLIPTextCfg(
        context_length=LENGTH, vocab_size=END + 1, width=32, heads=4, layers=3
    )
    model = CLIP(24, vision, text, quick_gelu=quick_gelu).eval()
    del model.visual
    arrays = rule.draw(shapes(model), "open_clip/")
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
    model.load_state_dict(tensors)
    return model


def shapes(model: torch.nn.Module) -> rule.Shapes:
    """Names and shapes of the state dict."""
    return {name: tuple(array.shape) for name, array in model.state_dict().items()}


def answer(model: torch.nn.Module, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """last, penultimate: f32 "b n d"; pooled: f32 "b p"."""
    states = {}

    def keep(name: str):
        return lambda module, inputs, output: states.update({name: output})

    model.transformer.resblocks[-2].register_forward_hook(keep("penultimate"))
    hook = model.ln_final.register_forward_hook(keep("last"))
    with torch.no_grad():
        states["pooled"] = model.encode_text(torch.from_numpy(tokens))
        hook.remove()
        states["penultimate"] = model.ln_final(states["penultimate"])
    return {name: state.numpy() for name, state in states.items()}


def main() -> None:
    """Write the recorded file."""
    tokens = rule.noise("open_clip/tokens", (3, LENGTH, END)).argmax(axis=-1)
    for row, end in enumerate((4, 7, LENGTH - 1)):
        tokens[row, end:] = 0
        tokens[row, end] = END
    found = {}
    for activation in ("gelu", "quick_gelu"):
        model = build(activation == "quick_gelu")
        for name, state in answer(model, tokens).items():
            found[f"{activation}/{name}"] = state
    sides = {name: ",".join(map(str, s)) for name, s in shapes(model).items()}
    entries = [f"{name} {side}" for name, side in sides.items()]
    np.savez_compressed(
        rule.FOLDER / "open_clip.npz",
        entries=np.array(entries),
        tokens=tokens.astype(np.int32),
        texts=np.array(TEXTS),
        ids=SimpleTokenizer()(TEXTS).numpy().astype(np.int32),
        **found,
    )


if __name__ == "__main__":
    main()
