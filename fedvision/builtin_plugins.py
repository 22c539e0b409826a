"""The built-in plug-ins: one readable table of each kind, name and place, and of a method its paper.

Nothing is registered by importing it: ``fedvision.registry`` finds these by the same code as any plug-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Builtin(NamedTuple):
    """Where a built-in lives, and arguments that its name already settles."""

    target: str
    preset: Mapping[str, Any] = {}
    tasks: frozenset[str] = frozenset({"classification"})
    """Of a loss, a metric or a network: the tasks that it is for."""
    parts: tuple[str, ...] = ()
    """Of a model: keys that name further networks inside it, each a name or a table of its own."""
    paper: str = ""
    """Of a method: the paper that it comes from, or that it is the package's own."""


_MULTI_LABEL = frozenset({"multi-label"})
_SEGMENTATION = frozenset({"segmentation"})
_DETECTION = frozenset({"detection"})


def _detector(name: str) -> Builtin:
    return Builtin(f"fedvision.models.detection.{name}:{name}", tasks=_DETECTION, parts=("backbone",))


def _vision(dataset: str) -> Builtin:
    return Builtin("fedvision.data.sources.torchvision_sets:torchvision_dataset", {"dataset": dataset})


BUILTINS: Mapping[str, Mapping[str, Builtin]] = {
    "data": {
        "digits": Builtin("fedvision.data.sources.arrays:digits"),
        "npz": Builtin("fedvision.data.sources.arrays:npz"),
        "elsewhere": Builtin("fedvision.data.sources.remote:elsewhere"),
        "image-folder": Builtin("fedvision.data.sources.image_folder:image_folder"),
        "manifest": Builtin("fedvision.data.sources.manifest:manifest"),
        "mask-folder": Builtin("fedvision.data.sources.mask_folder:mask_folder"),
        "nifti": Builtin("fedvision.data.sources.nifti:nifti"),
        "coco": Builtin("fedvision.data.sources.annotations.coco:coco"),
        "coco-masks": Builtin("fedvision.data.sources.annotations.coco_masks:coco_masks"),
        "voc": Builtin("fedvision.data.sources.annotations.voc:voc"),
        "yolo": Builtin("fedvision.data.sources.annotations.yolo:yolo"),
        "mnist": _vision("MNIST"),
        "fashion-mnist": _vision("FashionMNIST"),
        "kmnist": _vision("KMNIST"),
        "qmnist": _vision("QMNIST"),
        "emnist": _vision("EMNIST"),
        "usps": _vision("USPS"),
        "cifar10": _vision("CIFAR10"),
        "cifar100": _vision("CIFAR100"),
        "svhn": _vision("SVHN"),
        "stl10": _vision("STL10"),
        "gtsrb": _vision("GTSRB"),
        "pcam": _vision("PCAM"),
        "eurosat": _vision("EuroSAT"),
        "flowers102": _vision("Flowers102"),
        "oxford-iiit-pet": _vision("OxfordIIITPet"),
        "food101": _vision("Food101"),
        "dtd": _vision("DTD"),
        "fgvc-aircraft": _vision("FGVCAircraft"),
        "stanford-cars": _vision("StanfordCars"),
        "country211": _vision("Country211"),
    },
    "partition": {
        "iid": Builtin("fedvision.data.partition.partitioners:iid"),
        "dirichlet": Builtin("fedvision.data.partition.partitioners:dirichlet"),
        "shards": Builtin("fedvision.data.partition.partitioners:shards"),
        "quantity": Builtin("fedvision.data.partition.partitioners:quantity"),
        "column": Builtin("fedvision.data.partition.partitioners:column"),
        "population": Builtin("fedvision.data.partition.population:population"),
    },
    "model": {
        "cnn": Builtin("fedvision.models.cnn:cnn"),
        "resnet8": Builtin("fedvision.models.resnet:resnet8"),
        "resnet8-wide": Builtin("fedvision.models.resnet:resnet8_wide"),
        "resnet18": Builtin("fedvision.models.resnet:resnet18"),
        "resnet20": Builtin("fedvision.models.resnet:resnet20"),
        "rnn": Builtin("fedvision.models.rnn:rnn", parts=("reads",)),
        "semantic-fpn": Builtin(
            "fedvision.models.semantic_fpn:semantic_fpn", tasks=_SEGMENTATION, parts=("backbone",)
        ),
        "unet": Builtin("fedvision.models.unet:unet", tasks=_SEGMENTATION),
        "vit": Builtin("fedvision.models.vit:vit"),
        "fusion": Builtin("fedvision.models.fusion:fusion", parts=("extractor", "transformer")),
        "fcos": _detector("fcos"),
        "retinanet": _detector("retinanet"),
        "ssdlite": _detector("ssdlite"),
        "faster-rcnn": _detector("faster_rcnn"),
    },
    "expansion": {
        "random-relu": Builtin("fedvision.models.expansions:RandomRelu"),
        "bucket-groups": Builtin("fedvision.models.expansions:BucketGroups"),
    },
    "head": {
        "cosine": Builtin("fedvision.models.cosine_head:CosineHead"),
        "etf": Builtin("fedvision.models.etf:EtfHead"),
        "personalized": Builtin("fedvision.models.personalized_heads:PersonalizedHead"),
        "realigned": Builtin("fedvision.models.personalized_heads:RealignedHead"),
    },
    "loss": {
        "cross-entropy": Builtin(
            "fedvision.losses.weighting:cross_entropy",
            tasks=frozenset({"classification"}) | _DETECTION,
            paper="the plain loss",
        ),
        "weighted": Builtin(
            "fedvision.losses.weighting:weighted",
            tasks=frozenset({"classification"}) | _DETECTION,
            paper="Cui et al. 2019, arXiv 1901.05555",
        ),
        "focal": Builtin("fedvision.losses.focal:focal", paper="Lin et al. 2017, arXiv 1708.02002"),
        "class-balanced-focal": Builtin(
            "fedvision.losses.focal:focal",
            {"scheme": "effective-number"},
            paper="Cui et al. 2019, arXiv 1901.05555",
        ),
        "ldam": Builtin("fedvision.losses.margins:ldam", paper="Cao et al. 2019, arXiv 1906.07413"),
        "balanced-softmax": Builtin(
            "fedvision.losses.calibrated:balanced_softmax", paper="Ren et al. 2020, arXiv 2007.10740"
        ),
        "logit-adjusted": Builtin(
            "fedvision.losses.calibrated:logit_adjusted", paper="Menon et al. 2021, arXiv 2007.07314"
        ),
        "fedlc": Builtin("fedvision.losses.calibrated:fedlc", paper="Zhang et al. 2022, arXiv 2209.00189"),
        "fedrs": Builtin("fedvision.losses.calibrated:fedrs", paper="Li and Zhan 2021, KDD 2021"),
        "fedlf": Builtin("fedvision.losses.calibrated:fedlf", paper="Lu et al. 2024, arXiv 2409.12105"),
        "binary-cross-entropy": Builtin(
            "fedvision.losses.multilabel:binary_cross_entropy",
            tasks=_MULTI_LABEL,
            paper="the plain loss of several labels",
        ),
        "class-balanced": Builtin(
            "fedvision.losses.multilabel:class_balanced",
            tasks=_MULTI_LABEL,
            paper="Cui et al. 2019, arXiv 1901.05555",
        ),
        "asymmetric": Builtin(
            "fedvision.losses.multilabel:asymmetric",
            tasks=_MULTI_LABEL,
            paper="Ridnik et al. 2021, arXiv 2009.14119",
        ),
        "distribution-balanced": Builtin(
            "fedvision.losses.multilabel:distribution_balanced",
            tasks=_MULTI_LABEL,
            paper="Wu et al. 2020, arXiv 2007.09654",
        ),
        "dice": Builtin(
            "fedvision.losses.segmentation:dice",
            tasks=_SEGMENTATION,
            paper="Milletari et al. 2016, arXiv 1606.04797",
        ),
        "tversky": Builtin(
            "fedvision.losses.segmentation:tversky",
            tasks=_SEGMENTATION,
            paper="Salehi et al. 2017, arXiv 1706.05721",
        ),
        "focal-tversky": Builtin(
            "fedvision.losses.segmentation:focal_tversky",
            tasks=_SEGMENTATION,
            paper="Abraham and Khan 2018, arXiv 1810.07842",
        ),
        "sigmoid-focal": Builtin(
            "fedvision.losses.detection:sigmoid_focal",
            tasks=_DETECTION,
            paper="Lin et al. 2017, arXiv 1708.02002",
        ),
        "class-balanced-sigmoid-focal": Builtin(
            "fedvision.losses.detection:sigmoid_focal",
            {"scheme": "effective-number"},
            tasks=_DETECTION,
            paper="Cui et al. 2019, arXiv 1901.05555",
        ),
        "equalization": Builtin(
            "fedvision.losses.detection:equalization",
            tasks=_DETECTION,
            paper="Tan et al. 2020, arXiv 2003.05176",
        ),
        "seesaw": Builtin(
            "fedvision.losses.detection:seesaw", tasks=_DETECTION, paper="Wang et al. 2021, arXiv 2008.10032"
        ),
    },
    "client_algorithm": {
        "fedprox": Builtin("fedvision.algorithms.fedprox:FedProxClient"),
        "scaffold": Builtin("fedvision.algorithms.scaffold:ScaffoldClient"),
        "fedntd": Builtin("fedvision.algorithms.fedntd:FedNTDClient"),
        "fednova": Builtin("fedvision.algorithms.fednova:FedNovaClient"),
        "feddyn": Builtin("fedvision.algorithms.feddyn:FedDynClient"),
        "moon": Builtin("fedvision.algorithms.moon:MoonClient"),
        "fedvls": Builtin("fedvision.algorithms.fedvls:FedVLSClient"),
        "fedlf": Builtin("fedvision.algorithms.fedlf:FedLFClient"),
        "fedyoyo": Builtin("fedvision.algorithms.fedyoyo:FedYoYoClient"),
        "fedavg-support": Builtin("fedvision.algorithms.fedavg_support:SupportClient"),
        "distillation": Builtin("fedvision.algorithms.distillation:DistillationClient"),
        "fedrod": Builtin("fedvision.algorithms.fedrod:FedRoDClient"),
        "fedloge": Builtin("fedvision.algorithms.fedloge:FedLoGeClient"),
        "balancefl": Builtin("fedvision.algorithms.balancefl:BalanceFLClient"),
        "fedgrab": Builtin("fedvision.algorithms.fedgrab:FedGraBClient"),
        "fedgan": Builtin("fedvision.algorithms.fedgan:FedGANClient"),
        "rucr": Builtin("fedvision.algorithms.rucr:RUCRClient"),
        "fedrela": Builtin("fedvision.algorithms.fedrela:FedReLaClient"),
        "fedrep": Builtin("fedvision.algorithms.fedrep:FedRepClient"),
        "ditto": Builtin("fedvision.algorithms.ditto:DittoClient"),
        "apfl": Builtin("fedvision.algorithms.apfl:APFLClient"),
        "q-fedavg": Builtin("fedvision.algorithms.q_fedavg:QFedAvgClient"),
    },
    "optimizer": {"sgd": Builtin("fedvision.training.sgd:SGD")},
    "schedule": {
        "constant": Builtin("fedvision.training.schedules:constant"),
        "cosine": Builtin("fedvision.training.schedules:cosine"),
        "step": Builtin("fedvision.training.schedules:step"),
        "exponential": Builtin("fedvision.training.schedules:exponential"),
    },
    "sampler": {
        "shuffle": Builtin("fedvision.training.samplers:shuffle", paper="one pass over the images"),
        "balanced": Builtin(
            "fedvision.training.samplers:balanced", paper="Kang et al. 2020, arXiv 1910.09217"
        ),
        "square-root": Builtin(
            "fedvision.training.samplers:square_root",
            paper="Mahajan et al. 2018, arXiv 1805.00932; Kang et al. 2020",
        ),
        "effective": Builtin(
            "fedvision.training.samplers:effective", paper="Cui et al. 2019, arXiv 1901.05555"
        ),
        "progressive": Builtin(
            "fedvision.training.samplers:progressive", paper="Kang et al. 2020, arXiv 1910.09217"
        ),
    },
    "strategy": {
        "fedavg": Builtin(
            "fedvision.algorithms.fedavg:FedAvg", paper="McMahan et al. 2017, arXiv 1602.05629"
        ),
        "fedprox": Builtin("fedvision.algorithms.fedprox:FedProx", paper="Li et al. 2020, arXiv 1812.06127"),
        "fedper": Builtin(
            "fedvision.algorithms.fedper:FedPer", paper="Arivazhagan et al. 2019, arXiv 1912.00818"
        ),
        "fedrep": Builtin(
            "fedvision.algorithms.fedrep:FedRep", paper="Collins et al. 2021, arXiv 2102.07078"
        ),
        "ditto": Builtin("fedvision.algorithms.ditto:Ditto", paper="Li et al. 2021, arXiv 2012.04221"),
        "apfl": Builtin("fedvision.algorithms.apfl:APFL", paper="Deng et al. 2020, arXiv 2003.13461"),
        "q-fedavg": Builtin(
            "fedvision.algorithms.q_fedavg:QFedAvg", paper="Li et al. 2020, arXiv 1905.10497"
        ),
        "fedbn": Builtin("fedvision.algorithms.fedbn:FedBN", paper="Li et al. 2021, arXiv 2102.07623"),
        "scaffold": Builtin(
            "fedvision.algorithms.scaffold:Scaffold", paper="Karimireddy et al. 2020, arXiv 1910.06378"
        ),
        "ccvr": Builtin("fedvision.algorithms.ccvr:CCVR", paper="Luo et al. 2021, arXiv 2106.05001"),
        "fedgan": Builtin(
            "fedvision.algorithms.fedgan:FedGAN", paper="Rasouli et al. 2020, arXiv 2006.07228"
        ),
        "rucr": Builtin("fedvision.algorithms.rucr:RUCR", paper="RUCR, github.com/liuyuxia211/RUCR"),
        "fedrela": Builtin("fedvision.algorithms.fedrela:FedReLa", paper="Hu et al. 2026, arXiv 2606.26037"),
        "creff": Builtin("fedvision.algorithms.creff:CReFF", paper="Shang et al. 2022, arXiv 2204.13399"),
        "zero-shot": Builtin(
            "fedvision.algorithms.zero_shot:ZeroShot", paper="Radford et al. 2021, arXiv 2103.00020"
        ),
        "closed-form": Builtin(
            "fedvision.algorithms.closed_form.strategy:ClosedForm",
            paper="Fani et al. 2024 (Fed3R), He et al. 2025 (AFL); balanced: arXiv 2408.10349",
        ),
        "fedntd": Builtin("fedvision.algorithms.fedntd:FedNTD", paper="Lee et al. 2022, arXiv 2106.03097"),
        "fednova": Builtin(
            "fedvision.algorithms.fednova:FedNova", paper="Wang et al. 2020, arXiv 2007.07481"
        ),
        "feddyn": Builtin("fedvision.algorithms.feddyn:FedDyn", paper="Acar et al. 2021, arXiv 2111.04263"),
        "moon": Builtin("fedvision.algorithms.moon:Moon", paper="Li et al. 2021, arXiv 2103.16257"),
        "fedvls": Builtin("fedvision.algorithms.fedvls:FedVLS", paper="Guo et al. 2025, arXiv 2401.02329"),
        "fedlf": Builtin("fedvision.algorithms.fedlf:FedLF", paper="Lu et al. 2024, arXiv 2409.12105"),
        "fedyoyo": Builtin("fedvision.algorithms.fedyoyo:FedYoYo", paper="Yan et al. 2025, arXiv 2503.06916"),
        "fedavg-support": Builtin(
            "fedvision.algorithms.fedavg_support:FedAvgSupport", paper="the package's own"
        ),
        "distillation": Builtin(
            "fedvision.algorithms.distillation:Distillation", paper="Hinton et al. 2015, arXiv 1503.02531"
        ),
        "longtail": Builtin("fedvision.algorithms.longtail:LongTail", paper="the package's own"),
        "fedrod": Builtin("fedvision.algorithms.fedrod:FedRoD", paper="Chen and Chao 2022, arXiv 2107.00778"),
        "fedloge": Builtin(
            "fedvision.algorithms.fedloge:FedLoGe", paper="Xiao et al. 2024, arXiv 2401.08977"
        ),
        "balancefl": Builtin(
            "fedvision.algorithms.balancefl:BalanceFL", paper="Shuai et al. 2022, IPSN 2022"
        ),
        "fedgrab": Builtin(
            "fedvision.algorithms.fedgrab:FedGraB", paper="Xiao et al. 2023, arXiv 2310.07587"
        ),
        "flexlora": Builtin(
            "fedvision.algorithms.flexlora:FlexLora", paper="Bai et al. 2024, arXiv 2402.11505"
        ),
        "fedavgm": Builtin(
            "fedvision.algorithms.server_optimizers:FedAvgM", paper="Hsu et al. 2019, arXiv 1909.06335"
        ),
        "fedadam": Builtin(
            "fedvision.algorithms.server_optimizers:FedAdam", paper="Reddi et al. 2021, arXiv 2003.00295"
        ),
        "fedyogi": Builtin(
            "fedvision.algorithms.server_optimizers:FedYogi", paper="Reddi et al. 2021, arXiv 2003.00295"
        ),
        "fedadagrad": Builtin(
            "fedvision.algorithms.server_optimizers:FedAdagrad", paper="Reddi et al. 2021, arXiv 2003.00295"
        ),
        "median": Builtin("fedvision.algorithms.robust:Median", paper="Yin et al. 2018, arXiv 1803.01498"),
        "trimmed-mean": Builtin(
            "fedvision.algorithms.robust:TrimmedMean", paper="Yin et al. 2018, arXiv 1803.01498"
        ),
        "krum": Builtin("fedvision.algorithms.robust:Krum", paper="Blanchard et al. 2017, arXiv 1703.02757"),
    },
    "task": {
        "classification": Builtin("fedvision.tasks.classification:Classification"),
        "multi-label": Builtin("fedvision.tasks.multilabel:MultiLabel"),
        "segmentation": Builtin("fedvision.tasks.segmentation:Segmentation"),
        "detection": Builtin("fedvision.tasks.detection:Detection"),
    },
    "update": {
        "clip": Builtin("fedvision.updates.clip:Clip"),
        "float16": Builtin("fedvision.updates.float16:Float16"),
        "top-k": Builtin("fedvision.updates.top_k:TopK"),
    },
    "statistic": {
        "class-counts": Builtin("fedvision.training.statistics:class_counts"),
        "feature-moments": Builtin("fedvision.algorithms.ccvr:feature_moments"),
        "class-prototypes": Builtin("fedvision.algorithms.rucr:class_prototypes"),
        "rectified-head": Builtin("fedvision.algorithms.rucr:rectified_head"),
        "head-gradients": Builtin("fedvision.algorithms.creff:head_gradients"),
        "feature-sums": Builtin("fedvision.algorithms.closed_form.sums:feature_sums"),
        "weighted-products": Builtin("fedvision.algorithms.closed_form.sums:weighted_products"),
        "likelihoods": Builtin("fedvision.training.likelihoods:likelihoods"),
        "calibration": Builtin("fedvision.training.held_out_calibration:calibration"),
        "faithfulness": Builtin("fedvision.explanation.statistic:faithfulness_sums"),
        "head-scores": Builtin("fedvision.algorithms.closed_form.sums:head_scores"),
    },
    "metric": {
        "geometric-mean": Builtin("fedvision.tasks.metrics:geometric_mean"),
        "kappa": Builtin("fedvision.tasks.metrics:kappa"),
    },
    "engine": {
        "auto": Builtin("fedvision.engines.auto:AutoEngine"),
        "serial": Builtin("fedvision.engines.serial:SerialEngine"),
        "ray": Builtin("fedvision.engines.ray.engine:RayEngine"),
        "vectorized": Builtin("fedvision.engines.vectorized:VectorizedEngine"),
    },
}
