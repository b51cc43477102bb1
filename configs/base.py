"""Every setting of a pretraining run, with SimCLR's values for ImageNet.

Every other config changes a few lines of it. Any key can be set on the command line:
`--config.loss.temperature=0.2`. The value None means 'derived from other keys'.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """SimCLR with ResNet-50 on ImageNet: batch 4096, 100 epochs."""
    config = config_dict.ConfigDict()
    config.seed = 0  # of initial weights, order of images, random draws; below 2**32
    config.image_size = 224  # side of a view and of evaluation inputs, in pixels

    # Where images come from; see `simclr_jax/data/sources/registry.py`.
    config.data = data = config_dict.ConfigDict()
    data.dataset = "imagenet2012"  # TFDS name, folder:PATH, npz:PATH, photographs, ...
    data.data_dir = config_dict.placeholder(str)  # of TFDS; None: ~/tensorflow_datasets
    data.split = "train"  # of folders and prepared datasets also 'all' and '.'
    data.image_key = "image"
    data.label_key = "label"  # may be absent from the dataset
    data.threads = config_dict.placeholder(int)  # for augmentation; None: one per core
    # Concurrent read requests, of 16 records or one block each; None: `threads`. More
    # of them hide the latency of a store.
    data.parallel_reads = config_dict.placeholder(int)
    # MiB for all buffers of the input pipeline of a process; None: a quarter of what it
    # may use. Cores and memory are the process's share, not all of the machine's.
    data.memory_mb = config_dict.placeholder(int)
    # Decode images once and keep their pixels in each host's memory, if they fit in
    # this many MiB (TFDS: if it says that all have one size); 0 disables.
    data.in_memory_mb = 1024
    # Consecutive images of the dataset that are shuffled and read together, in one
    # request where they are stored together. 1 is best on disks. A store such as GCS
    # needs 16 or more, and then a dataset that is not stored class by class.
    data.block_size = 1
    # A training image that cannot be read. replace: the next image that can takes its
    # place, and quarantine.tsv of the run lists it; stop: the run ends.
    data.on_bad_record = "replace"
    # Images of a folder are turned upright by their EXIF orientation. None: they are,
    # as `prepare` does; those of TFDS never are, as in the reference.
    data.exif_orientation = config_dict.placeholder(bool)
    # The value that becomes 255 in images of more than 8 bits, such as 4095; None:
    # measured over the folder, and recorded.
    data.white_level = config_dict.placeholder(int)
    # The run ends when more than this share of the images went bad. Unless it is 0, it
    # allows 5 images of any dataset, or a tenth of fewer than 50: one of 10, none of 9.
    data.bad_records_max = 0.001

    # Images in one update, over all devices. NT-Xent sees twice as many views.
    config.batch = batch = config_dict.ConfigDict()
    batch.batch_size = 4096
    # Images in one forward pass, over all devices; None: the whole batch. The loss
    # still compares all views of the batch, and its gradient is exact, at the cost of a
    # second forward pass; BatchNorm takes its statistics over a micro-batch.
    batch.micro_batch_size = config_dict.placeholder(int)
    # Devices, next to each other in the mesh, whose views share BatchNorm's statistics;
    # None: all. Messages between fewer devices take less time, and other numbers come
    # out: views of a group can tell each other by its statistics.
    batch.norm_group = config_dict.placeholder(int)
    # Parts of the images of a batch, micro-batch or group of devices with statistics of
    # their own. 2: as many views share them as in PyTorch codes, which pass one view of
    # all images after the other.
    batch.norm_parts = 1

    # How a step uses devices and their memory.
    config.parallel = parallel = config_dict.ConfigDict()
    # True: each device holds a shard of parameters and optimiser state.
    parallel.shard_state = False
    # Dtype in which weight gradients of convolutions are summed over devices; bfloat16
    # halves that traffic and rounds each device's summand to 8 bits. GPUs always have
    # it where the computation is in bfloat16; TPUs sum those of the last convolution of
    # a bottleneck in float32 anyway.
    parallel.gradient_dtype = "float32"
    # GPUs only: the same bits in every run, so that a resumed run equals one that was
    # never stopped. Slower: kernels that sum in one order, none chosen by measuring.
    parallel.deterministic = False
    # What the backward pass recomputes to save memory: none; wide (the last and widest
    # convolution of each residual block), or wide_1 and wide_2 (of those in the first
    # group of blocks, or two); blocks (whole residual blocks). auto: the first of none,
    # wide_1, wide_2, wide and blocks whose step the compiler fits into a device.
    parallel.remat = "auto"

    # Augmentations in the order of application (paper appendix A); a crop comes first.
    # Further operations: rotation, cutout, noise, sobel.
    config.augment = augment = config_dict.ConfigDict()
    augment.operations = ("crop", "flip", "color_jitter", "grayscale", "blur")
    # Where views are computed. host; host_crop: crops on the host, all else on the
    # accelerator; accelerator: everything there, for a dataset that fits in its memory
    # and in in_memory_mb.
    augment.placement = "host"
    # How the host computes views. compiled: machine code by Numba; graph: TensorFlow's
    # operations, the same views but slower; auto: compiled where that is possible.
    augment.host_views = "auto"
    augment.crop = crop = config_dict.ConfigDict()
    crop.sampler = "reference"  # or torchvision: area uniform, ratio log-uniform
    crop.area_min, crop.area_max = 0.08, 1.0  # fraction of the image
    crop.ratio_min, crop.ratio_max = 3 / 4, 4 / 3  # width / height
    # False: resized by four taps an axis, as by the reference, whatever the factor;
    # True: as by Pillow, which antialiases. For images much larger than image_size.
    crop.antialias = False
    augment.flip = config_dict.create(probability=0.5)
    augment.color_jitter = jitter = config_dict.ConfigDict()
    jitter.probability = 0.8
    jitter.strength = 1.0  # multiplies the four ranges; 0.5 for CIFAR
    jitter.brightness = jitter.contrast = jitter.saturation = 0.8  # factors 1 +- value
    jitter.hue = 0.2  # turns, so 0.5 reaches every hue
    jitter.brightness_mode = "multiplicative"  # or additive, as in SimCLR v1's code
    augment.grayscale = config_dict.create(probability=0.2)
    augment.blur = blur = config_dict.ConfigDict()
    blur.probability = 0.5
    blur.sigma_min, blur.sigma_max = 0.1, 2.0  # pixels
    blur.kernel_fraction = 0.1  # of the image's side: 22 for 224, that is 23 taps
    augment.rotation = config_dict.create(probability=1.0)  # by 0, 90, 180 or 270
    augment.cutout = config_dict.create(probability=1.0, size_fraction=0.5)
    augment.noise = noise = config_dict.ConfigDict()
    noise.probability = 0.5
    noise.stddev_min, noise.stddev_max = 0.0, 0.1
    augment.sobel = config_dict.create(probability=0.5)

    # The encoder f.
    config.encoder = encoder = config_dict.ConfigDict()
    encoder.depth = 50  # 10, 18, 34, 50, 101, 152 or 200
    encoder.width = 1.0  # multiplies every layer's filters; from 1/64 to 16
    encoder.sk_ratio = 0.0  # 0.0625: SimCLRv2's selective kernels
    encoder.se_ratio = 0.0  # above 0: squeeze-and-excitation of that ratio
    encoder.stem = "auto"  # cifar up to 32 pixels, imagenet above; or by name
    encoder.first_group_projection = False  # True: Google's ResNet-18 and 34
    encoder.max_pool_padding = "torch"  # same: TensorFlow's, as in Google's weights
    # Of pixels: none; imagenet, as torchvision's weights; MEAN/STD such as 0.5/0.5 or
    # 0.5,0.5,0.5/0.2,0.2,0.2; or dataset: measured once from the training images.
    encoder.normalization = "none"
    encoder.kernel_init = "truncated_normal"  # std 1/sqrt(fan_in); or he_normal
    # The last BatchNorm of a block starts with scale 0, so that the block starts as its
    # shortcut; False: with 1, the default of torchvision's ResNets.
    encoder.zero_init_residual = True
    encoder.batch_norm_momentum = 0.9
    encoder.batch_norm_epsilon = 1e-5
    # Dtype of convolutions and their outputs; weights, statistics and loss are float32.
    encoder.compute_dtype = "bfloat16"

    # The projection head g; discarded after pretraining.
    config.head = head = config_dict.ConfigDict()
    head.kind = "nonlinear"  # none, linear or nonlinear
    head.num_layers = 3  # the paper's text has 2, its code and SimCLR v2 have 3
    head.hidden_dim = config_dict.placeholder(int)  # None: as wide as h
    head.output_dim = 128
    # Of its dense layers. normal: std 0.01, the reference's; uniform: up to
    # 1/sqrt(fan_in), the default of PyTorch's.
    head.kernel_init = "normal"

    config.loss = loss = config_dict.ConfigDict()
    # nt_xent, nt_logistic, margin_triplet (paper Table 2), dcl, dclw, or sup_con (which
    # needs labels).
    loss.name = "nt_xent"
    loss.temperature = 0.1  # 0.5 for CIFAR-10 at batch 512; margin_triplet has none
    loss.normalize = True  # False: inner products instead of cosines
    loss.semi_hard = False  # nt_logistic, margin_triplet: one semi-hard negative
    loss.margin = 0.4  # margin_triplet
    loss.weight_temperature = 0.5  # dclw: sigma of the weights of positives
    # nt_xent, dcl, dclw: global builds the matrix of all pairs, streaming walks over it
    # in a fraction of the memory; auto takes the latter where it pays.
    loss.form = "auto"

    config.optimizer = optimizer = config_dict.ConfigDict()
    optimizer.name = "lars"  # lars, sgd or adamw
    optimizer.learning_rate = 0.075  # before scaling: 0.075 * sqrt(4096) = 4.8
    optimizer.scaling = "sqrt"  # base * sqrt(B); linear: base * B / 256; or none
    optimizer.weight_decay = 1e-4  # of the probe's kernel too
    optimizer.decayed = "kernels"  # all: BatchNorm and biases too, as by PyTorch's
    optimizer.momentum = 0.9  # lars, sgd
    optimizer.nesterov = False  # lars, sgd
    optimizer.trust_coefficient = 0.001  # lars
    optimizer.b1, optimizer.b2 = 0.9, 0.999  # adamw
    # The largest global norm of the gradient, which is scaled down to it; None: any.
    optimizer.clip_norm = config_dict.placeholder(float)
    # A loss, gradient, update or BatchNorm statistic that is not finite: stop ends the
    # run; skip leaves the step out, at most so many in a row.
    optimizer.on_nonfinite = "stop"
    optimizer.max_skipped_steps = 10

    # Linear warm-up, then a cosine to 0. Steps, if set, override epochs.
    config.schedule = schedule = config_dict.ConfigDict()
    schedule.train_epochs = 100.0
    schedule.train_steps = config_dict.placeholder(int)
    schedule.warmup_epochs = 10.0
    schedule.warmup_steps = config_dict.placeholder(int)
    # Where a run goes on for longer than planned, with --allow_config_change. stretch:
    # the cosine over all steps; restart: a new cosine from extend_step on; constant.
    schedule.extend = "stretch"
    schedule.extend_step = config_dict.placeholder(int)  # the first one of the new part
    # Its peak, before scaling; None: optimizer.learning_rate.
    schedule.extend_learning_rate = config_dict.placeholder(float)

    # An online linear classifier on stop-gradient h, trained if there are labels. It
    # has no influence on the encoder.
    config.probe = config_dict.create(enabled=True)

    config.log = log = config_dict.create(every_steps=50)
    # Where metrics go beside metrics.jsonl: tensorboard, wandb, mlflow.
    log.writers = ("tensorboard",)

    config.checkpoint = checkpoint = config_dict.ConfigDict()
    checkpoint.every_steps = 1000
    checkpoint.every_secs = config_dict.placeholder(float)  # also, since the last one
    checkpoint.keep_last = 3
    checkpoint.keep_every_steps = config_dict.placeholder(int)  # never deleted
    # Also the one with the best figure of evaluation.every_steps, the first of equals.
    checkpoint.keep_best = False
    checkpoint.checksums = True  # of arrays, compared whenever they are read

    # Defaults of `simclr_jax.evaluate`.
    config.evaluation = evaluation = config_dict.ConfigDict()
    evaluation.train_split = "train"
    evaluation.test_split = "validation"
    # Pretraining: every so many steps, and at the end, kNN and the online probe are
    # measured on a held-out split, which changes no step; None: never.
    evaluation.every_steps = config_dict.placeholder(int)
    evaluation.held_out_split = config_dict.placeholder(str)  # None: test_split
    # Images of train_split that kNN searches then, a share of each class; None: all.
    evaluation.bank_images = config_dict.placeholder(int)
    evaluation.batch_size = 1024
    evaluation.crop_proportion = 0.875  # central crop, fraction of the side
    # bicubic: the reference's, four taps; bicubic_antialias: Pillow's; bicubic_legacy:
    # TensorFlow 1's, of Google's weights.
    evaluation.resize = "bicubic"
    evaluation.layer = 0  # 0: h; i: the head's output after layer i; -1: z
    # Numbers of nearest neighbours that vote (Wu et al., 2018), all measured in one
    # pass; the first gives the protocol's figure.
    evaluation.knn_k = (200, 20, 10)
    evaluation.knn_temperature = 0.07
    # L-BFGS: candidate L2 penalties on the mean loss, chosen on a held-out tenth of the
    # training images.
    evaluation.l2_penalties = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    evaluation.lbfgs_steps = 300
    # SGD on frozen features of random crops and flips (paper appendix B.6).
    evaluation.sgd_epochs = 90.0
    evaluation.sgd_batch_size = 4096
    evaluation.sgd_learning_rate = 0.1  # times batch / 256
    evaluation.sgd_momentum = 0.9

    return config.lock()
