# A process that fits lme4 models on request, so that its fits can be interleaved with those of other packages.
# Reads lines from standard input:
#   load <tab> CSV <tab> FORMULA <tab> REML <tab> FACTORS    answers "ready <version of lme4>"; FACTORS by commas
#   fit                          answers "fitted <log-likelihood> <evaluations> <seconds> <MB>"
#   responses <tab> FILE <tab> ROWS   reads responses, one after the other, as doubles; answers "responses <count>"
#   refit <tab> FIRST <tab> LIMIT     refit() of the responses from FIRST (1, 2, ...) on, until LIMIT seconds are over;
#   bare <tab> FIRST <tab> LIMIT      the same without the derivatives that lme4 checks convergence with;
#   fresh <tab> FIRST <tab> LIMIT     lmer() of them; all answer "refitted <seconds> <count> <theta of each>"
#   boot <tab> COUNT <tab> SEED <tab> CORES <tab> NAME   bootMer() with percentile intervals; answers
#                                     "booted <seconds> <limits of the coefficient NAME>"
#   satterthwaite                standard errors and degrees of freedom of all coefficients by lmerTest,
#   kenward                      by pbkrtest, or
#   robust <tab> CLUSTER         by clubSandwich, CR2; all answer "tested <seconds> <MB> <errors> <df>"
#   delete <tab> FACTOR          influence() with every level of a factor left out; answers
#                                "deleted <seconds> <changes of the fixed effects, level by level>"
#   deleterows <tab> ROWS        the same refits, as influence() makes them, without each of some rows (1, 2, ... by commas)
#   predict <tab> CSV <tab> SHOWN    predictions of new rows with standard errors from lme4's Cholesky factor,
#   intervals <tab> CSV <tab> SHOWN  or by merTools, which simulates; both answer "predicted <seconds> <MB> <predictions>
#                                    <standard errors>", the numbers of the first SHOWN rows
#   profile                      confint() by profiles; answers "profiled <seconds> <lower> <upper limits>"
# Seconds are of lmer() alone (of the loop, for many; of the tests); MB is the memory that the first fit added at its peak. What
# fails answers "error <message>". fresh and boot do without those derivatives.
suppressPackageStartupMessages(library(lme4))
input <- file("stdin", open = "r")
data <- formula <- reml <- before <- added <- responses <- fitted <- checked <- NULL
without_derivatives <- lmerControl(calc.derivs = FALSE)

megabytes <- function(field) {
  if (!file.exists("/proc/self/status")) return(NA)
  line <- grep(paste0("^", field, ":"), readLines("/proc/self/status"), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) * 1024 / 1e6
}

forget_peak <- function() {
  if (file.exists("/proc/self/clear_refs")) cat("5", file = "/proc/self/clear_refs")
}

load <- function(parts) {
  data <<- read.csv(parts[2])
  for (name in strsplit(parts[5], ",", fixed = TRUE)[[1]]) data[[name]] <<- factor(data[[name]])
  formula <<- as.formula(parts[3])
  reml <<- parts[4] == "TRUE"
  invisible(gc())
  forget_peak()
  before <<- megabytes("VmRSS")
  added <<- NULL
  paste("ready", packageVersion("lme4"))
}

fit <- function() {
  began <- Sys.time()
  fitted <- suppressWarnings(suppressMessages(lmer(formula, data, REML = reml)))
  seconds <- as.numeric(difftime(Sys.time(), began, units = "secs"))
  if (is.null(added)) added <<- megabytes("VmHWM") - before
  numbers <- c(as.numeric(logLik(fitted)), fitted@optinfo$feval, seconds, added)
  paste(c("fitted", vapply(numbers, format, "", digits = 17)), collapse = " ")
}

quietly <- function(expression) suppressWarnings(suppressMessages(expression))

base <- function() {
  if (is.null(fitted)) fitted <<- quietly(lmer(formula, data, REML = reml, control = without_derivatives))
  fitted
}

read_responses <- function(parts) {
  rows <- as.integer(parts[3])
  responses <<- matrix(readBin(parts[2], "double", file.size(parts[2]) / 8), rows)
  paste("responses", ncol(responses))
}

one_by_one <- function(parts, fit_one) {
  base()
  limit <- as.numeric(parts[3])
  found <- list()
  began <- proc.time()[[3]]
  for (j in as.integer(parts[2]):ncol(responses)) {
    found[[length(found) + 1]] <- getME(fit_one(responses[, j]), "theta")
    if (proc.time()[[3]] - began >= limit) break
  }
  seconds <- proc.time()[[3]] - began
  paste(c("refitted", seconds, length(found), vapply(unlist(found), format, "", digits = 17)), collapse = " ")
}

refit_bare <- function(y) quietly(refit(base(), newresp = y))

refit_one <- function(y) {
  if (is.null(checked)) checked <<- quietly(lmer(formula, data, REML = reml))
  quietly(refit(checked, newresp = y))
}

fresh_one <- function(y) {
  changed <- data
  changed[[all.vars(formula)[1]]] <- y
  quietly(lmer(formula, changed, REML = reml, control = without_derivatives))
}

estimates <- function(fit) c(fixef(fit), as.data.frame(VarCorr(fit))$sdcor)

boot <- function(parts) {
  cores <- as.integer(parts[4])
  began <- proc.time()[[3]]
  drawn <- quietly(bootMer(base(), estimates, nsim = as.integer(parts[2]), seed = as.integer(parts[3]),
                           parallel = if (cores > 1) "multicore" else "no", ncpus = cores))
  limits <- apply(drawn$t, 2, quantile, c(0.025, 0.975), na.rm = TRUE)
  seconds <- proc.time()[[3]] - began
  colnames(limits) <- names(drawn$t0)
  paste(c("booted", seconds, format(limits[, parts[5]], digits = 17)), collapse = " ")
}

tested <- function(table) {
  p <- length(fixef(base()))
  forget_peak()
  start <- megabytes("VmRSS")
  began <- Sys.time()
  found <- table(base(), p)
  seconds <- as.numeric(difftime(Sys.time(), began, units = "secs"))
  numbers <- c(seconds, megabytes("VmHWM") - start, unlist(found))
  paste(c("tested", vapply(numbers, format, "", digits = 17)), collapse = " ")
}

satterthwaite <- function(fit, p) {
  table <- quietly(summary(lmerTest::as_lmerModLmerTest(fit))$coefficients)
  list(table[, "Std. Error"], table[, "df"])
}

kenward <- function(fit, p) {
  adjusted <- pbkrtest::vcovAdj(fit)
  plain <- vcov(fit)
  list(sqrt(diag(as.matrix(adjusted))), apply(diag(p), 1, pbkrtest::Lb_ddf, V0 = plain, Vadj = adjusted))
}

robust <- function(parts) {
  tested(function(fit, p) {
    covariance <- clubSandwich::vcovCR(fit, cluster = data[[parts[2]]], type = "CR2")
    table <- clubSandwich::coef_test(fit, vcov = covariance, test = "Satterthwaite")
    list(table$SE, table$df_Satt)
  })
}

by_profile <- function() {
  fit <- base()
  began <- proc.time()[[3]]
  limits <- quietly(confint(fit, method = "profile", quiet = TRUE))
  seconds <- proc.time()[[3]] - began
  paste(c("profiled", seconds, vapply(limits, format, "", digits = 17)), collapse = " ")
}

without_row <- function(i) {
  fitted <- base()
  fixef(quietly(update(fitted, data = data[-i, ], start = list(theta = getME(fitted, "theta")),
                       control = lmerControl(optCtrl = list(maxfun = 1000)))))
}

deleted <- function(remove) {
  base()
  began <- proc.time()[[3]]
  found <- remove()
  seconds <- proc.time()[[3]] - began
  paste(c("deleted", seconds, vapply(t(found) - fixef(base()), format, "", digits = 17)), collapse = " ")
}

delete_groups <- function(parts) {
  deleted(function() {
    found <- influence(base(), groups = parts[2], data = data)
    found[[grep("fixed.effects[-", names(found), fixed = TRUE)]]
  })
}

delete_rows <- function(parts) {
  rows <- as.integer(strsplit(parts[2], ",", fixed = TRUE)[[1]])
  deleted(function() t(sapply(rows, without_row)))
}

# Errors of x'beta and z'b together: with L L' = Lambda' Z'Z Lambda + 1 (permuted) and lme4's RZX, RX, the variance
# is sigma^2 (|u|^2 + |w|^2), L u = P Lambda' z, RX' w = x - RZX' u.
prediction_errors <- function(fitted, new) {
  terms <- lme4::mkNewReTrms(fitted, new, formula(fitted, random.only = TRUE)[-2])
  X <- model.matrix(delete.response(terms(fitted, fixed.only = TRUE)), new)
  L <- getME(fitted, "L")
  Z <- getME(fitted, "Lambdat") %*% terms$Zt
  u <- solve(L, solve(L, Z, system = "P"), system = "L")
  w <- backsolve(getME(fitted, "RX"), t(X) - as.matrix(crossprod(getME(fitted, "RZX"), u)), transpose = TRUE)
  values <- as.vector(X %*% fixef(fitted)) + as.vector(crossprod(terms$Zt, terms$b))
  list(values, sigma(fitted) * sqrt(colSums(u^2) + colSums(w^2)))
}

by_mertools <- function(fitted, new) {
  found <- quietly(merTools::predictInterval(fitted, new, level = 0.95, stat = "mean", include.resid.var = FALSE))
  list(found$fit, (found$upr - found$lwr) / (2 * qnorm(0.975)))
}

predicted <- function(parts, method) {
  new <- read.csv(parts[2])
  for (name in names(new)) if (is.factor(data[[name]])) new[[name]] <- factor(new[[name]], levels(data[[name]]))
  fitted <- base()
  invisible(gc())
  forget_peak()
  start <- megabytes("VmRSS")
  began <- proc.time()[[3]]
  found <- method(fitted, new)
  seconds <- proc.time()[[3]] - began
  numbers <- c(seconds, megabytes("VmHWM") - start, unlist(lapply(found, head, as.integer(parts[3]))))
  paste(c("predicted", vapply(numbers, format, "", digits = 17)), collapse = " ")
}

requests <- list(
  load = load, fit = function(parts) fit(), responses = read_responses, boot = boot,
  refit = function(parts) one_by_one(parts, refit_one), bare = function(parts) one_by_one(parts, refit_bare),
  fresh = function(parts) one_by_one(parts, fresh_one), satterthwaite = function(parts) tested(satterthwaite),
  kenward = function(parts) tested(kenward), robust = robust, profile = function(parts) by_profile(),
  delete = delete_groups, deleterows = delete_rows, predict = function(parts) predicted(parts, prediction_errors),
  intervals = function(parts) predicted(parts, by_mertools)
)

while (length(line <- readLines(input, n = 1)) > 0) {
  parts <- strsplit(line, "\t", fixed = TRUE)[[1]]
  answer <- tryCatch(
    requests[[parts[1]]](parts),
    error = function(failure) paste("error", gsub("\n", " ", conditionMessage(failure)))
  )
  cat(answer, "\n")
  flush(stdout())
}
