#!/usr/bin/env bash
# Real images through the whole path: CIFAR-10 (JPEG copies, ImageNet's folder layout), a subset, few epochs, a CPU.
#   bash experiments/cifar10/run.sh /path/to/cifar10 [OUT]
set -euo pipefail
data=(data=imagefolder "data.root=$1" data.image_size=32 data.train_images=10000 data.val_images=2000
      model=inception_bn_tiny optim=sgd training=default "out=${2:-runs}")
n2n train teacher "${data[@]}" epochs=6
n2n grow --op wider "${data[@]}" epochs=3 op.noise=0
n2n grow --op deeper "${data[@]}" epochs=3
n2n grow --op wider "${data[@]}" epochs=1 op.noise=0.1 --devices 2
