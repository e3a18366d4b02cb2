/* The list of solver rules, and what they make of a public solver. */
#ifndef WEFTI_RULES_H
#define WEFTI_RULES_H

#include "core/iface/rule.h"
#include "weft/solver.h"

/* The rule by id; NULL for WEFTI_RULE_USER. Static storage. */
const wefti_rule *wefti_rule_of(wefti_rule_id id);
/* The rule that carries out a solver; NULL for L-BFGS, which is no row-local rule. */
const wefti_rule *wefti_rule_for(const weft_solver *solver);
/* Fills the hyperparameters of update number `step` (from 1) but for the clip factor; the rest is left at its neutral value. */
WEFT_MUST_CHECK weft_status wefti_hyper_fill(const weft_solver *solver, int64_t step, double hyper_out[WEFTI_HYPER_COUNT]);
/* Those of FTRL-proximal; 0: alpha 0.1, beta 1. Its l1 and l2 are those of wefti_rule_args. */
void wefti_hyper_ftrl(double alpha, double beta, double hyper_out[WEFTI_HYPER_COUNT]);
/* Refuses settings that make no sense, by name. */
WEFT_MUST_CHECK weft_status wefti_solver_check(const weft_solver *solver);

#endif
