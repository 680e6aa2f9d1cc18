#!/usr/bin/env bash
# The studies: all 50,000 training images, the 10,000 test images, seeds 0 to 4, every arm once.
#   bash experiments/operators/run.sh /path/to/cifar10 OUT
set -euo pipefail
all=(data=imagefolder "data.root=$1" data.image_size=32 optim=sgd training=default training.batch_size=128 optim.lr=0.2
     progress=false --seeds 5)
n2n compare operators "${all[@]}" model=inception_bn_tiny 'training.default_epochs={teacher:8,student:4}' "out=$2"
n2n compare depth "${all[@]}" 'training.default_epochs={teacher:8,student:4}' "out=$2"
