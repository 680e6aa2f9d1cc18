#!/usr/bin/env bash
# The paper's figures 4, 5 and 6 and five studies beside them, on half of CIFAR-10's training images and all 10,000 test
# images, every arm once, seeds 0 to 4. large: figure 4 with the paper's own widths, 3.2 and 10.3 million parameters, and
# at the teacher's full rate; seeds 0 to 2.
#   bash experiments/figures/run.sh /path/to/cifar10 OUT [STUDY ...]
set -euo pipefail
data=$1 out=$2
shift 2
all=(data=imagefolder "data.root=$data" data.image_size=32 data.train_images=25000 optim=sgd training=default
     training.batch_size=128 progress=false 'training.default_epochs={teacher:8,student:4}')
for study in "${@:-fig4 fig5 fig6 noise when neighbours rates lifelong large}"; do
    for one in $study; do
        case $one in
            large)
                n2n compare operators "${all[@]}" --seeds 3 model=inception_bn model.stem=imagenet optim.lr=0.02 "out=$out/large" \
                    study.name=large "study.title='Figure 4 with the widths of the paper'" \
                    'study.arms=[wider,wider_full,random_pad,random_init,continue,continue_full]'
                continue ;;
            fig5|fig6) model=inception_rect_tiny ;;
            *) model=inception_bn_tiny ;;
        esac
        n2n compare "$one" "${all[@]}" --seeds 5 "model=$model" optim.lr=0.2 "out=$out/$one"
    done
done
