"""One line for each collapse that a first stage's held-out figures show."""

DEAD_USAGE = 0.1
BLIND_GAP = 0.02
BEATEN_ACCURACY, BEATEN_GAP = 0.98, 6.0


def diagnose(figures: dict[str, float]) -> list[str]:
    """Lines for people; none when nothing looks wrong.

    figures: code_usage (share of the codes that could have been used), logit_real,
    logit_fake, disc_acc, as far as the stage has them.
    """
    lines = []
    usage = figures.get("code_usage", 1.0)
    if usage < DEAD_USAGE:
        lines.append(
            f"codebook collapse: held-out images use {usage:.1%} of the codes they "
            "could; set loss.restart_below=0.01, or loss.codebook_decay=0.99"
        )
    if "disc_acc" not in figures:
        return lines
    gap = figures["logit_real"] - figures["logit_fake"]
    if abs(gap) < BLIND_GAP:
        lines.append(
            f"the discriminator sees no difference (logits {gap:.3f} apart): usual "
            "in the first thousand steps after it wakes; if it stays, raise the "
            "learning rate or discriminator.width"
        )
    if figures["disc_acc"] > BEATEN_ACCURACY and gap > BEATEN_GAP:
        lines.append(
            f"the discriminator wins everywhere (accuracy {figures['disc_acc']:.1%}, "
            f"logits {gap:.1f} apart): the decoder learns little from it; start it "
            "later (discriminator.start_steps), narrow it (discriminator.width), or "
            "lower discriminator.weight if reconstructions get worse"
        )
    return lines
