"""Fine-tuning and distillation: what is trained, what stays, and from where."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pretraining import pretrain

from simclr_jax import models, optim, parallel
from simclr_jax.configs import base, finetune
from simclr_jax.configs import distill as distill_config
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.errors import ConfigError, DataError
from simclr_jax.evaluation import loop as evaluation_loop
from simclr_jax.models import Outputs
from simclr_jax.runs.metrics_writer import read_metrics
from simclr_jax.training import (
    compiling,
    distillation,
    finetuning,
    loop,
)
from simclr_jax.weights import encoder as encoders

SIZE, CLASSES, IMAGES = 8, 4, 64
CREATE_MESH = parallel.create_mesh


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """What is trained does not depend on devices, and one is fast."""
    monkeypatch.setattr(
        parallel, "create_mesh", lambda *_: CREATE_MESH(jax.devices()[:1])
    )


@dataclasses.dataclass
class Weights:
    """A network as `simclr_jax.load` gives it."""

    model: models.SimCLR
    variables: dict
    heads: dict
    preprocessing: Preprocessing


def make_weights(**head):
    """Weights without zeros, and statistics that are not those of a fresh net."""
    model = models.SimCLR(
        models.create_encoder(depth=10, width=0.0625, stem="cifar"),
        models.create_projection_head(**{"num_layers": 3, "output_dim": 5} | head),
    )
    rng = np.random.default_rng(0)
    params, stats = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3))
    )
    params, stats = jax.tree.map(lambda leaf: draw(rng, leaf.shape), (params, stats))
    parts = [name for name in params if name != "encoder"]
    return Weights(
        model,
        {"params": params["encoder"], "batch_stats": stats["encoder"]},
        {
            "params": {part: params[part] for part in parts},
            "batch_stats": {part: stats[part] for part in parts},
        },
        Preprocessing(SIZE, 1.0),
    )


def draw(rng, shape):
    if len(shape) == 1:
        return jnp.asarray(rng.uniform(0.5, 1.0, shape), jnp.float32)
    fan_in = np.prod(shape[:-1])
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(fan_in), jnp.float32)


@pytest.fixture
def data(tmp_path):
    """Images whose class is their brightness, so that something can be learnt."""
    labels = np.arange(IMAGES) % CLASSES
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (IMAGES, SIZE, SIZE, 3))
    images = (images + 60 * labels[:, None, None, None]).astype(np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    np.savez(tmp_path / "unlabelled.npz", images=images)
    return tmp_path


def make_config(data, adapt=lambda config: finetune.adapt(config, 1.0), **changes):
    config = base.get_config().unlock()
    config.image_size = SIZE
    config.data.dataset = f"npz:{data}/{{split}}.npz"
    config.evaluation.test_split = "test"
    config.evaluation.batch_size = 8
    config.encoder.compute_dtype = "float32"
    config.log.writers = ()
    config.checkpoint.every_steps = 100
    config = adapt(config).unlock()
    config.batch.batch_size = 8
    config.optimizer.learning_rate, config.optimizer.scaling = 0.01, "none"
    config.schedule.train_steps = 3
    config.schedule.warmup_steps = 0
    config.update_from_flattened_dict(changes)
    return config


def trained(weights, config, workdir):
    """(parameters, statistics) behind fine-tuning, as NumPy arrays."""
    state = loop.run(finetuning.make_job(config, weights), str(workdir))
    return jax.device_get((state.params, state.batch_stats))


def changed(before, after):
    """Names of the leaves that differ."""
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(before), strict=True
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, new), old in pairs
        if not np.array_equal(new, old)
    }


def all_names(tree):
    return changed(jax.tree.map(lambda x: x * 0 - 1, tree), tree)


@pytest.mark.slow
def test_trains_everything_from_the_given_weights(data, tmp_path):
    weights = make_weights()
    config = make_config(data)
    params, stats = trained(weights, config, tmp_path / "run")
    # The classifier sits on h, so nothing of the head is there.
    assert params.keys() == {"encoder", "probe"}
    assert stats.keys() == {"encoder"}
    old = jax.device_get(weights.variables)
    moved = changed(old["params"], params["encoder"])
    assert moved == all_names(old["params"])
    assert changed(old["batch_stats"], stats["encoder"]) == all_names(
        old["batch_stats"]
    )
    # From there, and not from drawn weights.
    for new, was in zip(
        jax.tree.leaves(params["encoder"]), jax.tree.leaves(old["params"]), strict=True
    ):
        np.testing.assert_allclose(new, was, atol=0.05)


@pytest.mark.parametrize(
    "optimizer",
    [
        "lars",
        pytest.param("sgd", marks=pytest.mark.slow),
        pytest.param("adamw", marks=pytest.mark.slow),
    ],
)
def test_frozen_groups_stay_as_they_are(data, tmp_path, optimizer):
    weights = make_weights()
    config = make_config(
        data,
        **{
            "finetune.after_group": 2,
            "optimizer.name": optimizer,
            "optimizer.weight_decay": 0.1,
        },
    )
    params, stats = trained(weights, config, tmp_path / "run")
    old = jax.device_get(weights.variables)
    for before, after in (
        (old["params"], params["encoder"]),
        (old["batch_stats"], stats["encoder"]),
    ):
        free = {n for n in all_names(before) if n.startswith(("group3", "group4"))}
        assert changed(before, after) == free


@pytest.mark.slow
def test_no_gradient_passes_what_is_frozen():
    weights = make_weights()
    encoder = weights.model.encoder.copy(frozen_through=2)
    images = jnp.ones((2, SIZE, SIZE, 3)) * jnp.arange(2.0)[:, None, None, None]

    def total(params):
        variables = {**weights.variables, "params": params}
        h, _ = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.sum(h)

    gradient = jax.jit(jax.grad(total))(weights.variables["params"])
    for part, tree in gradient.items():
        passes = any(np.any(leaf) for leaf in jax.tree.leaves(tree))
        assert passes == (part in ("group3", "group4")), part


@pytest.mark.slow
def test_a_frozen_encoder_trains_the_classifier_alone(data, tmp_path):
    weights = make_weights()
    config = make_config(data, **{"finetune.after_group": 4})
    params, stats = trained(weights, config, tmp_path / "run")
    old = jax.device_get(weights.variables)
    assert not changed(old["params"], params["encoder"])
    assert not changed(old["batch_stats"], stats["encoder"])
    assert np.any(params["probe"]["kernel"])


@pytest.mark.slow
def test_frozen_batch_norm_keeps_statistics_scales_and_offsets(data, tmp_path):
    weights = make_weights()
    config = make_config(data, **{"finetune.batch_norm": "frozen", "finetune.layer": 1})
    params, stats = trained(weights, config, tmp_path / "run")
    old = jax.device_get(weights.variables)
    assert not changed(old["batch_stats"], stats["encoder"])
    moved = changed(old["params"], params["encoder"])
    assert moved == {n for n in all_names(old["params"]) if n.endswith("kernel")}
    head = jax.device_get(weights.heads)
    assert not changed({"bn1": head["batch_stats"]["head"]["bn1"]}, stats["head"])
    assert not changed(head["params"]["head"]["bn1"], params["head"]["bn1"])


@pytest.mark.slow
def test_the_classifier_sees_the_layer_that_is_asked_for(data, tmp_path):
    weights = make_weights()
    config = make_config(data, **{"finetune.layer": 1})
    params, _ = trained(weights, config, tmp_path / "run")
    assert params["head"].keys() == {"dense1", "bn1"}
    loaded = encoders.load(str(tmp_path / "run"))
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    hidden = loaded.encode(images, layer=1)
    assert hidden.min() >= 0  # behind the ReLU of a hidden layer
    kernel = np.asarray(loaded.heads["params"]["probe"]["kernel"], np.float64)
    bias = np.asarray(loaded.heads["params"]["probe"]["bias"], np.float64)
    np.testing.assert_allclose(
        loaded.classify(images), hidden @ kernel + bias, rtol=1e-4, atol=1e-5
    )
    # z is what is kept of the head.
    np.testing.assert_array_equal(loaded.encode(images, layer=-1), hidden)


@pytest.mark.slow
def test_it_learns_and_resumes_where_it_stopped(data, tmp_path):
    weights = make_weights()
    changes = {
        "optimizer.name": "adamw",
        "optimizer.scaling": "none",
        "optimizer.learning_rate": 3e-3,
        "augment.operations": ("flip",),
        "schedule.train_steps": 100,
        "checkpoint.every_steps": 50,
        "log.every_steps": 1,
    }
    whole, _ = trained(weights, make_config(data, **changes), tmp_path / "whole")
    log = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert log[0]["loss"] == pytest.approx(np.log(CLASSES), rel=1e-5)  # starts at zeros
    assert np.mean([entry["accuracy"] for entry in log[-10:]]) > 0.75
    part = make_config(data, **changes)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "100")
    resumed, _ = trained(weights, part, tmp_path / "parts")
    assert not changed(whole, resumed)


def test_a_share_of_the_labels_is_that_share(data):
    config = make_config(data, **{"finetune.label_fraction": 0.25})
    config.batch.batch_size = IMAGES
    with pytest.raises(ConfigError, match=f"not exceed the {IMAGES // 4} images"):
        finetuning.make_job(config, make_weights())


def test_refuses_what_cannot_be(data):
    weights = make_weights()
    config = make_config(data, **{"finetune.layer": 4})
    with pytest.raises(ConfigError, match=r"finetune.layer=4: must be .* up to 3"):
        finetuning.make_job(config, weights)
    config = make_config(data, **{"data.split": "unlabelled"})
    with pytest.raises(DataError, match="fine-tuning needs them"):
        finetuning.make_job(config, weights)


def test_distillation_loss_is_the_equation():
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(2, 6, 3)) * 3
    labels = np.array([0, 1, 2, -1, -1, 0])
    kernel = rng.normal(size=(4, 3))
    parts = distillation.Distillation(
        temperature=2.0, labelled_weight=0.3, classifier_weight_decay=0.1
    )

    def log_softmax(x):
        return x - np.log(np.sum(np.exp(x), axis=1, keepdims=True))

    soft = np.exp(log_softmax(teacher / 2.0))
    distilled = -np.mean(np.sum(soft * log_softmax(logits / 2.0), axis=1))
    own = log_softmax(logits)[np.arange(6), labels]
    labelled = -np.mean(own[labels >= 0])
    expected = 0.7 * distilled + 0.3 * labelled

    loss, metrics = parts(
        Outputs(h=None, z=None, logits=jnp.asarray(logits, jnp.float32)),
        {"probe": {"kernel": jnp.asarray(kernel, jnp.float32)}},
        {"labels": jnp.asarray(labels), "teacher_logits": jnp.asarray(teacher)},
    )
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(loss, expected + 0.05 * np.sum(kernel**2), rtol=1e-5)


class Teacher(Weights):
    """Knows the class of an image by its brightness."""

    class_names = tuple(f"level {i}" for i in range(CLASSES))

    def classifier(self):
        def logits(levels, images):
            return -jnp.square(images.mean((1, 2, 3))[:, None] * 255 - levels) / 100

        return jax.tree_util.Partial(logits, 20.0 + 60.0 * jnp.arange(CLASSES))


def make_teacher():
    weights = make_weights()
    model = dataclasses.replace(weights.model, num_classes=CLASSES)
    return Teacher(model, weights.variables, weights.heads, weights.preprocessing)


def distilling(data, **changes):
    def adapt(config):
        config.distill = distill_config.get_config("smoke").distill
        config.head.kind = "none"
        config.encoder.depth, config.encoder.width = 10, 0.0625
        config.augment.operations = ("flip",)
        config.optimizer.name, config.optimizer.scaling = "adamw", "none"
        config.optimizer.learning_rate = 3e-3
        config.log.every_steps = 1
        return config

    return make_config(data, adapt, **changes)


def distilled(config, workdir, weights=None):
    job = distillation.make_job(config, make_teacher(), weights)
    return loop.run(job, str(workdir))


@pytest.mark.slow
def test_a_student_learns_from_unlabelled_images_what_its_teacher_knows(data, tmp_path):
    config = distilling(
        data, **{"data.split": "unlabelled", "schedule.train_steps": 100}
    )
    distilled(config, tmp_path / "run")
    log = read_metrics(tmp_path / "run" / "metrics.jsonl")
    agreement = [entry["teacher_agreement"] for entry in log]
    assert np.mean(agreement[-10:]) > 0.75 > 0.6 > np.mean(agreement[:3])
    student = encoders.load(str(tmp_path / "run"))
    assert student.class_names == Teacher.class_names
    with np.load(data / "test.npz") as arrays:
        found = np.argmax(student.classify(arrays["images"]), axis=1)
        assert np.mean(found == arrays["labels"]) > 0.75


@pytest.mark.slow
def test_a_student_can_start_from_weights(data, tmp_path):
    weights = make_weights(kind="none")
    config = distilling(data, **{"optimizer.learning_rate": 1e-9, "encoder.width": 1.0})
    state = distilled(config, tmp_path / "run", weights)
    for new, old in zip(
        jax.tree.leaves(state.params["encoder"]),
        jax.tree.leaves(weights.variables["params"]),
        strict=True,
    ):
        np.testing.assert_allclose(new, old, atol=1e-6)


@pytest.mark.slow
def test_eight_devices_make_the_step_of_one(data, monkeypatch):
    """Of a student whose teacher is a network of its own."""
    weights, network = make_weights(kind="none"), make_weights(kind="none")
    rng = np.random.default_rng(1)
    probe = {"kernel": rng.normal(size=(32, CLASSES)), "bias": rng.normal(size=CLASSES)}
    teacher = encoders.PretrainedEncoder(
        model=dataclasses.replace(network.model, num_classes=CLASSES, fine_tuned=True),
        variables=network.variables,
        heads={"params": {"probe": jax.tree.map(np.float32, probe)}},
        preprocessing=network.preprocessing,
        config={},
        config_hash="",
        step=0,
    )
    config = distilling(
        data, **{"distill.labelled_weight": 0.5, "optimizer.name": "sgd"}
    )
    batch = {
        "images": rng.integers(0, 256, (16, 1, SIZE, SIZE, 3), np.uint8),
        "labels": rng.integers(-1, CLASSES, 16).astype(np.int32),
    }
    found = []
    for number in (1, 8):
        mesh = CREATE_MESH(jax.devices()[:number])
        monkeypatch.setattr(parallel, "create_mesh", lambda *_, mesh=mesh: mesh)
        job = distillation.make_job(config, teacher, weights)
        whole = parallel.replicated(mesh)
        state = compiling.compile_init(job.parts, mesh, image_size=SIZE)(
            jax.random.key(0)
        )
        # A copy, since the step takes its memory.
        state = jax.tree.map(np.array, job.initialize(state))
        state = jax.device_put(state, whole)
        advance = compiling.compile_step(job.parts, mesh, with_teacher=True)
        state, metrics, _ = advance(
            state,
            parallel.shard_batch(mesh, batch),
            jax.device_put(job.teacher, whole),
        )
        found.append(jax.device_get((state.params, state.batch_stats, metrics)))
    for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)
    metrics = found[0][2]
    assert metrics["distillation_loss"] > 0.1 < metrics["labelled_loss"]


@pytest.mark.slow
def test_hidden_labels_do_not_enter_the_loss(data, tmp_path):
    config = distilling(
        data,
        **{
            "distill.labelled_weight": 1.0,
            "distill.label_fraction": 0.25,
            "schedule.train_steps": 1,
            "batch.batch_size": IMAGES,
        },
    )
    distilled(config, tmp_path / "run")
    (entry,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    # At the start all logits are 0, so each labelled image costs ln(classes), whatever
    # their number, and a quarter of the hits of class 0 is 16 of 64 images.
    assert entry["loss"] == pytest.approx(np.log(CLASSES), rel=1e-5)
    assert entry["accuracy"] == pytest.approx(0.25)
    assert encoders.load(str(tmp_path / "run")).class_names == Teacher.class_names


def test_distillation_refuses_what_cannot_be(data):
    teacher = make_teacher()
    without = dataclasses.replace(
        teacher, model=dataclasses.replace(teacher.model, num_classes=None)
    )
    with pytest.raises(ConfigError, match="--teacher: has no classifier"):
        distillation.make_job(distilling(data), without)
    config = distilling(
        data, **{"data.split": "unlabelled", "distill.labelled_weight": 0.5}
    )
    with pytest.raises(ConfigError, match=r"labelled_weight=0.5: must be 0"):
        distillation.make_job(config, teacher)
    other = dataclasses.replace(
        teacher, model=dataclasses.replace(teacher.model, num_classes=7)
    )
    with pytest.raises(ConfigError, match="has 4 classes and the teacher 7"):
        distillation.make_job(distilling(data), other)


def test_frozen_parts_have_no_optimiser_state():
    params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(3)}}
    frozen = optim.freeze(
        optim.lars(0.1, weight_decay=0.1), lambda path: path[0].key == "a"
    )
    state = frozen.init(params)
    sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sizes == [3]
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = frozen.update(gradients, state, params)
    assert not np.any(updates["a"]["kernel"])
    plain = optim.lars(0.1, weight_decay=0.1)
    expected, _ = plain.update(
        {"b": gradients["b"]}, plain.init({"b": params["b"]}), {"b": params["b"]}
    )
    np.testing.assert_array_equal(
        optax.tree.norm(updates["b"]), optax.tree.norm(expected["b"])
    )


@pytest.fixture
def run(data, tmp_path):
    """A run of a drawn encoder with a projection head."""
    config = make_config(data, lambda config: config)
    config.encoder.depth, config.encoder.width = 10, 0.0625
    config.head.output_dim = 5
    config.schedule.train_steps = 1
    config.evaluation.knn_k = (5,)
    pretrain(config, str(tmp_path / "run"))
    return tmp_path / "run"


def receipt(run, protocol):
    return json.loads((run / "eval" / f"{protocol}.json").read_text())


@pytest.mark.slow
def test_evaluation_by_fine_tuning_leaves_the_encoder_alone(run):
    overrides = [
        "batch.batch_size=8",
        "schedule.train_steps=3",
        "finetune.layer=1",
    ]
    arguments = {"adapt": finetune.adapt, "baselines": True, "overrides": overrides}
    before = encoders.checksum(encoders.load(str(run)).variables)
    evaluation_loop.evaluate(str(run), ["finetune_10pct"], **arguments)
    found = receipt(run, "finetune_10pct")
    assert found["baselines"].keys() == {"untrained"}
    assert found["encoder_checksum_after"] == before
    # A tenth of 16 images of each of four classes, rounded up.
    assert found["settings"]["train_images"].startswith("8 of ")
    assert found["settings"]["schedule.train_steps"] == 3
    assert found["settings"]["finetune.layer"] == 1
    tuned = run / "eval" / "finetune_10pct" / "pretrained"
    assert encoders.checksum(encoders.load(str(tuned)).variables) != before

    # The fine-tuned run's own protocol finds the same; other settings begin anew.
    evaluation_loop.evaluate(str(tuned), ["classifier"])
    assert receipt(tuned, "classifier")["value"] == found["value"]
    overrides[1] = "schedule.train_steps=2"
    evaluation_loop.evaluate(str(run), ["finetune_10pct"], **arguments)
    assert encoders.load(str(tuned)).step == 2


@pytest.mark.slow
def test_what_does_not_go_with_the_run_is_refused(run, data):
    with pytest.raises(ConfigError, match=r"--set=schedule.train_steps=3: must come"):
        evaluation_loop.evaluate(
            str(run), ["knn"], overrides=["schedule.train_steps=3"]
        )
    images = np.zeros((20, SIZE, SIZE, 3), np.uint8)
    for split in ("train", "test"):
        path = data / f"other-{split}.npz"
        np.savez(path, images=images, labels=np.arange(20) % 7)
    with pytest.raises(ConfigError, match=r"classifier of 4 classes, and .* has 7"):
        evaluation_loop.evaluate(
            str(run),
            ["classifier"],
            overrides=[f"data.dataset=npz:{data}/other-{{split}}.npz"],
        )
