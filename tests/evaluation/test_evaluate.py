"""The evaluation's way from files to figures: sides, resuming, invariance, refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from lDM_jax.core import distributed
from lDM_jax.core.errors import UserError
from lDM_jax.evaluation import extractors, features, figures
from lDM_jax.evaluation import sides as sides_lib
from lDM_jax.evaluation.comparison import Comparison
from lDM_jax.evaluation.image_sets import Batch, Data, Folder, Part
from lDM_jax.evaluation.metrics.frechet import FrechetDistance
from lDM_jax.evaluation.metrics.statistics import Gaussian, Moments
from lDM_jax.tools import evaluate
from tests.reference import rule

COUNT = 300  # more than one part, the last one partial


def pictures(seed: int, count: int = COUNT, size: int = 24) -> np.ndarray:
    """Coloured noise, uint8, every set of its own tint."""
    rng = np.random.default_rng(seed)
    tint = rng.integers(0, 128, 3)
    return (rng.integers(0, 128, (count, size, size, 3)) + tint).astype(np.uint8)


@pytest.fixture(scope="module")
def emoji():
    """The shipped extractor, four rows a device."""
    return dataclasses.replace(extractors.load_emoji(), rows=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """a.npz, b.npz, and the pictures of a as a folder."""
    root = tmp_path_factory.mktemp("sets")
    for index, name in enumerate("ab"):
        np.savez(root / f"{name}.npz", arr_0=pictures(index))
    (root / "a" / "deep").mkdir(parents=True)
    for index, picture in enumerate(pictures(0)):
        place = root / "a" / ("deep" if index % 2 else "")
        Image.fromarray(picture).save(place / f"{index * 7919 % 1000:04d}.png")
    return root


@pytest.fixture(scope="module")
def sides(files, emoji, tmp_path_factory):
    """The sides a and b."""
    work = tmp_path_factory.mktemp("work")
    return [sides_lib.open_side(files / f"{n}.npz", emoji, work / n) for n in "ab"]


def values(report: figures.Report) -> dict[str, float]:
    return {name: figure.value for name, figure in report.figures.items()}


def test_features_of_a_batch_are_those_of_its_pictures(emoji):
    """Padding is cut, rows are not mixed, and the resize is the one named: against the
    network itself on pictures resized by numpy, one at a time. f32 rounding of sums."""
    from lDM_jax.evaluation.metrics.resize import resize
    from lDM_jax.models.emoji_features import EmojiFeatures

    x = pictures(0, 35)
    result = emoji.features(list(x))
    assert {key: value.shape for key, value in result.items()} == {
        "pool": (35, 112),
        "spatial": (35, 448),
        "logits": (35, 99),
    }
    apply = rule.fast_jit(EmojiFeatures().apply)
    for index in (0, 31, 32, 34):
        one = resize(x[index], "clean", 64)[None] / 127.5 - 1
        expected = apply(emoji.variables, one.astype(np.float32))
        for key, value in expected.items():
            np.testing.assert_allclose(result[key][index], value[0], atol=2e-5)


def test_pictures_of_many_extents_are_as_good(emoji):
    small, wide = pictures(0, 1)[0], pictures(1, 1, 40)[0][:30]
    mixed = emoji.features([small, wide])["pool"]
    for picture, row in zip((small, wide), mixed, strict=True):
        np.testing.assert_allclose(emoji.features([picture])["pool"][0], row, atol=1e-5)


def test_files_order_batches_devices_and_hosts_do_not_matter(
    files, emoji, sides, tmp_path, monkeypatch
):
    """A folder in another order on one device in batches of 5, in two hosts' shares,
    against the npz on eight devices. 1e-7: a convolution's f32 sums may run in another
    order in batches of another size, which some processors show and others do not. IS
    has one split here."""
    straight = values(figures.measure(*sides, emoji, replicates=3))
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(distributed, "all_agree", lambda holds: holds)
    lonely, folder = dataclasses.replace(emoji, rows=5), Folder(files / "a")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(FileNotFoundError):  # the other host's share is missing
        features.extract(folder, lonely, tmp_path)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    other = sides_lib.side_of_images(folder, lonely, tmp_path)
    assert other.record["fingerprint"] == sides[0].record["fingerprint"]
    result = values(figures.measure(other, sides[1], emoji, replicates=3))
    assert result.keys() == straight.keys() and len(result) == 8
    for name, value in straight.items():
        assert result[name] == pytest.approx(value, rel=1e-7, abs=1e-12), name


def test_a_killed_run_continues_to_the_same_figures(
    files, emoji, sides, tmp_path, monkeypatch
):
    real, done = features.write_part, []

    def killed(folder, number, *rest):
        if number == 1 and 1 not in done:
            done.append(number)
            raise KeyboardInterrupt
        done.append(number)
        return real(folder, number, *rest)

    monkeypatch.setattr(features, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        sides_lib.open_side(files / "a.npz", emoji, tmp_path)
    again = sides_lib.open_side(files / "a.npz", emoji, tmp_path)
    assert done == [0, 1, 1]
    options = dict(kinds=["frechet", "kernel"], replicates=2)
    ours = figures.measure(again, sides[1], emoji, **options).as_json()
    assert ours == figures.measure(*sides, emoji, **options).as_json()
    with pytest.raises(UserError, match="features of other images"):
        sides_lib.open_side(files / "b.npz", emoji, tmp_path)


def test_figures_are_those_of_the_metrics(sides, emoji):
    """The distance of the set's own features, summed at once."""
    report = figures.measure(*sides, emoji, replicates=2)
    banks = [np.concatenate(list(side.bank.blocks())) for side in sides]
    gaussians = []
    for rows in banks:
        exact = rows.astype(np.float64)
        sigma = np.cov(exact, rowvar=False)
        gaussians.append(Gaussian(exact.mean(axis=0), sigma))
    result = report.figures["fd_emoji"]
    assert result.value == pytest.approx(
        FrechetDistance(gaussians[0])(gaussians[1]), rel=1e-9
    )
    assert result.low < result.value < result.high
    names = {"fd", "sfd", "is", "kd", "precision", "recall", "density", "coverage"}
    assert report.figures.keys() == {f"{name}_emoji" for name in names}


def test_names_say_what_a_figure_was_made_with():
    def name(stem, **changes):
        extractor = extractors.Extractor(
            "inception", "legacy", 299, "", 1, "", variables={}, apply=None
        )
        extractor = dataclasses.replace(extractor, **changes)
        return Comparison(None, None, extractor).name(stem)

    stems = ["fid", "sfid", "is", "kid"]
    assert [name(stem) for stem in stems] == stems
    assert name("precision") == "precision_adm"
    assert name("fid", label="clean") == "fid_clean"
    assert name("recall", name="vgg", label="original") == "recall_original"
    assert name("fid", name="dinov2", label="dinov2") == "fd_dinov2"
    assert name("kid", name="clip", label="clip") == "cmmd"


def test_rows_blocks_and_weights_of_a_bank(sides):
    """Blocks join the parts in the order of the pictures, rows follow the contents."""
    bank = sides[0].bank
    whole = np.concatenate(list(bank.blocks("pool", 1000)))
    for size in (1, 100, 256, 257):
        parts = list(bank.blocks("pool", size))
        assert {len(part) for part in parts[:-1]} <= {size}
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    places = np.array([299, 0, 17])
    np.testing.assert_array_equal(bank.rows(places), whole[bank.order[places]])
    drawn = np.zeros(COUNT)
    drawn[:5] = [1, 2, 0, 1, 1]
    moments = Moments.zeros(whole.shape[1])
    moments.add(whole[bank.order[[0, 1, 1, 3, 4]]])
    result = bank.gaussian("pool", bank.to_image_order(drawn))
    np.testing.assert_allclose(result.covariance, moments.gaussian().covariance)


def stats(path, width: int = 112, spatial: bool = False, **more):
    """A file of statistics as other programs write it."""
    arrays = {"mu": np.zeros(width, np.float32), "sigma": np.eye(width)}
    if spatial:
        arrays |= {"mu_s": np.zeros(448), "sigma_s": np.eye(448)}
    np.savez(path, **(arrays | more))
    return path


def test_any_mix_of_the_field_s_files(files, emoji, tmp_path, sides):
    """pytorch-fid's, clean-fid's and EDM's mu and sigma; guided-diffusion's four and
    its pictures; against a side of pictures and against each other."""
    plain = sides_lib.open_side(stats(tmp_path / "mu.npz"), emoji, tmp_path / "1")
    assert plain.bank is None and "does not say" in plain.warnings[0]
    assert values(figures.measure(plain, plain, emoji))["fd_emoji"] == 0
    mixed = figures.measure(sides[0], plain, emoji, replicates=2)
    assert values(mixed).keys() == {"fd_emoji", "is_emoji"}
    exact = FrechetDistance(sides[0].pool)(Gaussian(np.zeros(112), np.eye(112)))
    assert mixed.figures["fd_emoji"].value == pytest.approx(exact)
    path = stats(tmp_path / "adm.npz", spatial=True, arr_0=pictures(1))
    adm = sides_lib.open_side(path, emoji, tmp_path / "2")
    result = values(figures.measure(sides[0], adm, emoji, replicates=2))
    assert {"sfd_emoji", "precision_emoji", "kd_emoji"} <= result.keys()
    assert result["fd_emoji"] == pytest.approx(exact)  # the file's mu, not arr_0's


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, "float32 .* rounded first"),
        ({"arr_0": np.zeros((4, 3, 8, 8), np.uint8)}, "give uint8"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, "no pictures"),
        ({"images": np.zeros(3)}, "holds images; expected arr_0"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu is \(3,\) and sigma \(4, 4\)"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 1], [0, 1]])}, "not symmetric"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
    ],
)
def test_files_that_cannot_be_right_are_refused(arrays, text, emoji, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=text):
        sides_lib.open_side(tmp_path / "bad.npz", emoji, tmp_path / "work")


def test_pickles_and_nothing_are_refused(emoji, tmp_path):
    (tmp_path / "stats.pkl").write_bytes(b"\x80\x04.")
    (tmp_path / "empty").mkdir()
    for name, text in (
        ("stats.pkl", "they run code"),
        ("empty", "holds no image"),
        ("none", "no such folder or npz"),
    ):
        with pytest.raises(UserError, match=text):
            sides_lib.open_side(tmp_path / name, emoji, tmp_path / "work")


def test_a_batch_is_read_in_pieces_compressed_or_not(tmp_path):
    x = pictures(0, 20)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", arr_0=x)
        batch = Batch(tmp_path / "x.npz")
        np.testing.assert_array_equal(batch.read([3, 4, 19]), x[[3, 4, 19]])
        chosen = Part(batch, [7, 2])
        np.testing.assert_array_equal(chosen.read([0, 1]), x[[7, 2]])


def test_the_command_line(files, tmp_path, capsys):
    """compare prints one JSON line; a mistake is one line and code 2."""
    arguments = [
        "compare",
        str(files / "a.npz"),
        str(files / "b.npz"),
        "--extractor=emoji",
        "--figures=frechet",
        "--bootstrap=2",
    ]
    assert evaluate.main(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["count"] == result["reference_count"] == COUNT
    assert result["fd_emoji_95"][0] < result["fd_emoji"] < result["fd_emoji_95"][1]
    assert result["prepared_emoji"]["resize"] == "clean"
    assert "300 samples is too high by about" in err
    assert evaluate.main([*arguments[:3], "--weights=x", "--extractor=emoji"]) == 2
    assert "give NAME=FILE" in capsys.readouterr().err


def test_a_reference_of_a_data_set_round_trips(tmp_path, emoji, capsys):
    """Its statistics are those of its pictures, its pictures those of the data."""
    from lDM_jax.from_config import networks

    config, _ = networks.load_trained("emoji")
    config.data.limit = 40
    data = Data(config, "train")
    side = sides_lib.side_of_images(data, emoji, tmp_path / "work")
    path = tmp_path / "ref.npz"
    sides_lib.save(path, side, data)
    with np.load(path) as npz:
        assert {"mu", "sigma", "mu_s", "sigma_s", "arr_0"} <= set(npz.files)
        np.testing.assert_array_equal(npz["arr_0"][5], data.read([5])[0])
        record = json.loads(str(npz["record"]))
    assert record["count"] == 40 and record["transform"]["size_px"] == 64
    assert {"extractor", "weights_sha256", "resize", "source_fingerprint"} <= set(
        record
    )
    again = sides_lib.open_side(path, emoji, tmp_path / "again")
    result = figures.measure(side, again, emoji, replicates=2)
    assert abs(result.figures["fd_emoji"].value) < 1e-9
    assert result.figures["precision_emoji"].value == 1.0
    assert not any("does not say" in text for text in result.warnings)


def test_reference_from_a_config_file(tmp_path, capsys):
    """The command: a new file, whose record names source, split and transform."""
    out = tmp_path / "ref.npz"
    arguments = ["reference", "--config=configs/emoji.py", "--set=data.limit=9"]
    arguments += [f"--out={out}", "--extractor=emoji"]
    assert evaluate.main(arguments) == 0
    record = json.loads(capsys.readouterr().out)["record"]
    assert (record["source"], record["split"], record["count"]) == ("emoji", "train", 9)
    assert sides_lib.array_names(out) >= {"mu", "sigma", "mu_s", "sigma_s", "arr_0"}
    assert evaluate.main(arguments) == 2
    assert "give a new file" in capsys.readouterr().err
    assert (
        evaluate.main([*arguments[:1], "--config=none.py", f"--out={tmp_path}/b.npz"])
        == 2
    )


class Same:
    """A first stage that changes nothing."""

    @staticmethod
    def apply(params, x):
        return x


def test_a_first_stage_that_changes_nothing_has_r_fid_zero(emoji, tmp_path):
    """Pictures through padded batches; both sides resampled together: an interval of
    no width. No kernel distance, which takes the sides for independent."""
    from lDM_jax.evaluation.commands.recon import Reconstructions
    from lDM_jax.from_config import networks

    config, _ = networks.load_trained("emoji_kl_f8")
    config.data.limit = 21
    data = Data(config, "validation")
    rebuilt = Reconstructions(data, Same, {})
    np.testing.assert_array_equal(rebuilt.read(range(21)), data.read(range(21)))
    pair = [
        sides_lib.side_of_images(p, emoji, tmp_path / str(i))
        for i, p in enumerate((rebuilt, data))
    ]
    result = figures.measure(*pair, emoji, replicates=3, paired=True).figures
    assert "kd_emoji" not in result and "fd_emoji" in result
    # rounding of traces of about ten
    assert np.abs(result["fd_emoji"]).max() < 1e-5
