#!/usr/bin/env bash
# The paper's figures 4, 5 and 6 and four studies beside them, on half of CIFAR-10's training images and all 10,000 test
# images, seeds 0 to 2, every arm once.
#   bash experiments/figures/run.sh /path/to/cifar10 OUT [STUDY ...]
set -euo pipefail
data=$1 out=$2
shift 2
all=(data=imagefolder "data.root=$data" data.image_size=32 data.train_images=25000 optim=sgd training=default
     training.batch_size=128 optim.lr=0.2 progress=false --seeds 3 'training.default_epochs={teacher:8,student:4}')
for study in "${@:-fig4 fig5 fig6 noise when neighbours rates}"; do
    for one in $study; do
        case $one in fig5|fig6) model=inception_rect_tiny ;; *) model=inception_bn_tiny ;; esac
        n2n compare "$one" "${all[@]}" "model=$model" "out=$out/$one"
    done
done
