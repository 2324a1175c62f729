/* Everything of core/: statuses, memory, random streams, parallel loops, BLAS, tensors, the tape and its ops. */
#ifndef ESPALIER_CORE_H
#define ESPALIER_CORE_H

#include <espalier/status.h>
#include <espalier/compare.h>
#include <espalier/memory.h>
#include <espalier/random.h>
#include <espalier/parallel.h>
#include <espalier/confined.h>
#include <espalier/escape.h>
#include <espalier/blas.h>
#include <espalier/lapack.h>
#include <espalier/tensor.h>
#include <espalier/tape.h>
#include <espalier/ops.h>
#include <espalier/parameters.h>
#include <espalier/yaml.h>
#include <espalier/input_file.h>
#include <espalier/output_file.h>
#include <espalier/folder_lock.h>
#include <espalier/utf8.h>

#endif
