# Many responses of one design, each fitted from scratch: data/refits/. Needs lme4 and jsonlite only.
#   Rscript make/refits.R              all of it, in tests/reference
#   Rscript make/refits.R fits         responses and their fits
#   Rscript make/refits.R bootstrap    bootstrap intervals (minutes)
# No refit(): lme4 1.1-31's refit() of a REML fit divides by n - 1 instead of n - p.
suppressPackageStartupMessages({ library(lme4); library(jsonlite) })
options(digits = 15, warn = 1)
RNGkind("Mersenne-Twister", "Inversion", "Rejection")
FOLDER <- file.path("data", "refits")
SNAP <- 2e-2         # a standard deviation relative to sigma below this may be on the boundary
WORTH <- 1e-9        # of deviance: what is worth less is put on the boundary
SINGULAR <- 1e-4     # lme4's tolerance of isSingular()

## ------------------------------------------------------------------ one fit
quiet <- list(calc.derivs = FALSE, check.conv.singular = "ignore", check.conv.grad = "ignore",
              check.conv.hess = "ignore", check.scaleX = "ignore")
control <- function(...) do.call(lmerControl, c(list(...), quiet))
OPTIMIZERS <- list(
  nlopt = control(optimizer = "nloptwrap", optCtrl = list(algorithm = "NLOPT_LN_BOBYQA", xtol_abs = 1e-12,
                  ftol_abs = 1e-12, xtol_rel = 1e-14, maxeval = 20000)),
  minqa = control(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10, maxfun = 50000)))

richardson <- function(D) {   # estimates with steps h, h/2, h/4, ... whose errors are of even powers of h
  k <- 1
  while (length(D) > 1) { D <- (4^k * D[-1] - D[-length(D)]) / (4^k - 1); k <- k + 1 }
  D
}
move <- function(x, i, by) { x[i] <- x[i] + by; x }
gradient <- function(f, x, h) sapply(seq_along(x), function(i)
  richardson(sapply(h[i] / c(1, 2, 4), function(s) (f(move(x, i, s)) - f(move(x, i, -s))) / (2 * s))))
hessian <- function(f, x, h) {
  f0 <- f(x); H <- matrix(0, length(x), length(x))
  for (i in seq_along(x)) for (j in seq_len(i)) {
    H[i, j] <- H[j, i] <- richardson(sapply(c(1, 0.5), function(s) {
      a <- h[i] * s; b <- h[j] * s
      if (i == j) (f(move(x, i, a)) - 2 * f0 + f(move(x, i, -a))) / a^2
      else (f(move(move(x, i, a), j, b)) - f(move(move(x, i, a), j, -b)) -
            f(move(move(x, i, -a), j, b)) + f(move(move(x, i, -a), j, -b))) / (4 * a * b)
    }))
  }
  H
}
# Newton's method with differences; what it cannot improve stays as the optimizers left it.
polish <- function(dev, theta, free) {
  if (!any(free)) return(list(theta = theta, decrement = 0))
  f <- function(z) { t <- theta; t[free] <- z; dev(t) }
  z <- theta[free]; decrement <- NA
  for (round in 1:4) {
    h <- 0.02 * pmax(abs(z), 0.05)
    g <- gradient(f, z, h); H <- hessian(f, z, h)
    if (min(eigen(H, TRUE, TRUE)$values) <= 0) break
    step <- -solve(H, g); decrement <- -sum(step * g)
    if (f(z + step) > f(z) + 1e-10) break
    z <- z + step
    if (decrement < 1e-15) break
  }
  theta[free] <- z
  list(theta = theta, decrement = decrement)
}

fresh <- function(formula, data, REML, control, start = NULL, ...)
  suppressMessages(suppressWarnings(lmer(formula, data, REML = REML, control = control, start = start, ...)))

# The best of two optimizers (and of two more starts where that is on the boundary), put exactly onto the
# boundary where nothing is lost by it, polished; then lme4's own results at that theta.
best_fit <- function(formula, data, REML) {
  dev <- fresh(formula, data, REML, OPTIMIZERS$nlopt, devFunOnly = TRUE)
  lower <- environment(dev)$lower; diagonal <- lower == 0
  tried <- lapply(OPTIMIZERS, function(o) getME(fresh(formula, data, REML, o), "theta"))
  values <- sapply(tried, dev)
  if (any(tried[[which.min(values)]][diagonal] < SNAP)) for (from in list(c(0.2, 0.02), c(4, -0.3)))
    tried <- c(tried, list(getME(fresh(formula, data, REML, OPTIMIZERS$minqa,
                                       start = ifelse(diagonal, from[1], from[2])), "theta")))
  values <- sapply(tried, dev)
  theta <- unname(tried[[which.min(values)]]); found <- min(values)
  fixed <- rep(FALSE, length(theta))
  for (i in which(diagonal)) {
    zero <- theta; zero[i] <- 0
    # the rest of a column without variance can be turned into the next one
    if (length(theta) == 3 && i == 1 && !all(diagonal)) zero <- c(0, 0, sqrt(theta[2]^2 + theta[3]^2))
    if (theta[i] < SNAP && dev(zero) <= found + WORTH) { theta <- zero; fixed[i] <- TRUE }
  }
  if (length(theta) == 3 && !all(diagonal) && fixed[1]) fixed[2] <- TRUE
  done <- polish(dev, theta, !fixed)
  better <- all(done$theta[diagonal] >= 0) && dev(done$theta) <= dev(theta) + 1e-10
  if (better) theta <- done$theta
  fit <- fresh(formula, data, REML, control(optimizer = NULL), start = theta)
  criterion <- -2 * as.numeric(logLik(fit))
  stopifnot(all.equal(criterion, dev(theta), tolerance = 1e-12), criterion <= found + 1e-8)
  list(criterion = criterion, sigma = sigma(fit), singular = isSingular(fit, tol = SINGULAR), theta = theta,
       beta = fixef(fit), se = sqrt(diag(as.matrix(vcov(fit)))), optimizers = unname(values[1:2]),
       decrement = done$decrement)
}

## ------------------------------------------------------------------ designs and their responses
read <- function(file) {
  d <- read.csv(file.path("data", file), na.strings = "")
  for (v in intersect(names(d), c("Subject", "batch", "cask", "plate", "sample", "g"))) d[[v]] <- factor(d[[v]])
  d
}
# Rounded, so that the files are small and hold exactly what was fitted.
draw <- function(formula, data, truth, count, seed, digits) {
  one_sided <- as.formula(paste("~", as.character(formula)[3]))
  new <- suppressMessages(simulate(one_sided, nsim = count, seed = seed, newdata = data, newparams = truth, family = gaussian))
  round(as.matrix(new), digits)
}
truth_of <- function(fit) list(beta = fixef(fit), theta = getME(fit, "theta"), sigma = sigma(fit))

sleep_formula <- Reaction ~ Days + (Days | Subject)
sleepstudy_set <- function(count, seed, slope = NULL, gaps = FALSE) {
  data <- read("sleepstudy.csv")[, c("Reaction", "Days", "Subject")]
  fit <- lmer(sleep_formula, data)
  truth <- truth_of(fit)
  if (!is.null(slope)) truth$theta <- c(truth$theta[[1]], 0, slope / truth$sigma)
  Y <- draw(sleep_formula, data, truth, count, seed, 2)
  if (gaps) Y <- with_gaps(Y, data, seed + 1)
  list(formula = sleep_formula, data = data, file = "sleepstudy.csv", factors = "Subject", truth = truth, Y = Y, seed = seed)
}
# The first 38 responses are complete. Five have gaps of their own, five share one, one lacks a subject, and one
# lacks half of the rows.
with_gaps <- function(Y, data, seed) {
  set.seed(seed); n <- nrow(Y)
  for (j in 39:43) Y[sample(n, 5), j] <- NA
  shared <- sample(n, 9)
  Y[shared, 44:48] <- NA
  Y[data$Subject == levels(data$Subject)[3], 49] <- NA
  Y[sample(n, n / 2), 50] <- NA
  Y
}
covariate_set <- function(count, seed) {
  set.seed(seed)
  d <- data.frame(x = round(rnorm(1000), 4), z = round(runif(1000, -1, 1), 4), g = rep(sprintf("g%02d", 1:50), each = 20))
  d$x <- round(d$x + rep(rnorm(50, sd = 0.5), each = 20), 4)     # group means differ
  out <- gzfile(file.path(FOLDER, "covariate.data.csv.gz"), "w", compression = 9)
  write.csv(d, out, row.names = FALSE, quote = FALSE); close(out)
  d$g <- factor(d$g)
  formula <- y ~ x + z + (1 + x | g)
  L <- t(chol(matrix(c(0.5, 0.12, 0.12, 0.2), 2)))
  truth <- list(beta = c(1, 0.5, -0.3), theta = L[lower.tri(L, TRUE)], sigma = 1)
  list(formula = formula, data = d, file = "refits/covariate.data.csv.gz", factors = "g", truth = truth,
       Y = draw(formula, d, truth, count, seed + 1, 3), seed = seed)
}
from_fit <- function(formula, file, factors, count, seed, digits) {
  data <- read(file)
  truth <- truth_of(lmer(formula, data))
  list(formula = formula, data = data, file = file, factors = factors, truth = truth,
       Y = draw(formula, data, truth, count, seed, digits), seed = seed)
}
SETS <- list(
  sleepstudy = function() sleepstudy_set(300, 20261),
  sleepstudy_slope1 = function() sleepstudy_set(100, 20262, slope = 1),
  sleepstudy_slope0 = function() sleepstudy_set(100, 20263, slope = 0),
  sleepstudy_gaps = function() sleepstudy_set(50, 20264, gaps = TRUE),
  covariate = function() covariate_set(100, 20265),
  penicillin = function() from_fit(diameter ~ 1 + (1 | plate) + (1 | sample), "Penicillin.csv", c("plate", "sample"), 50, 20267, 3),
  pastes = function() from_fit(strength ~ 1 + (1 | batch / cask), "Pastes.csv", c("batch", "cask"), 50, 20268, 3))

## ------------------------------------------------------------------ files
numbers <- function(x, digits) formatC(x, digits = digits, width = 1, format = "g")
write_gz <- function(table, name) {
  out <- gzfile(file.path(FOLDER, name), "w", compression = 9)
  write.csv(table, out, row.names = FALSE, quote = FALSE, na = ""); close(out)
}
theta_names <- function(fit) sub("^([^.]*)\\.", "\\1|", names(getME(fit, "theta")))

make_fits <- function(name) {
  s <- SETS[[name]](); response <- all.vars(s$formula)[1]
  colnames(s$Y) <- paste0("y", seq_len(ncol(s$Y)))
  rows <- list(); worst <- 0; gain <- 0; unpolished <- 0
  for (j in seq_len(ncol(s$Y))) for (REML in c(TRUE, FALSE)) {
    s$data[[response]] <- s$Y[, j]
    complete <- droplevels(s$data[!is.na(s$Y[, j]), ])
    r <- best_fit(s$formula, complete, REML)
    rows <- c(rows, list(c(response = j, method = if (REML) "reml" else "ml", criterion = numbers(r$criterion, 16),
      sigma = numbers(r$sigma, 13), singular = as.integer(r$singular),
      setNames(numbers(r$theta, 13), paste0("theta", seq_along(r$theta))),
      setNames(numbers(r$beta, 13), paste0("beta", seq_along(r$beta))),
      setNames(numbers(r$se, 13), paste0("se", seq_along(r$se))))))
    worst <- max(worst, r$decrement, na.rm = TRUE); unpolished <- unpolished + is.na(r$decrement)
    gain <- max(gain, min(r$optimizers) - r$criterion)
  }
  table <- as.data.frame(do.call(rbind, rows))
  write_gz(as.data.frame(s$Y), paste0(name, ".responses.csv.gz"))
  write_gz(table, paste0(name, ".fits.csv.gz"))
  s$data[[response]] <- s$Y[, 1]
  last <- fresh(s$formula, s$data, TRUE, control())
  reml <- table$method == "reml"
  cat(sprintf("%-18s %d responses; singular: REML %.0f%%, ML %.0f%%; worst decrement %.1e, gain by polishing %.1e, not polished %d\n", name,
    ncol(s$Y), 100 * mean(table$singular[reml] == 1), 100 * mean(table$singular[!reml] == 1), worst, gain, unpolished))
  list(formula = deparse(s$formula), response = response, data = s$file, factors = I(s$factors), rows = nrow(s$Y),
       responses = ncol(s$Y), seed = s$seed, fixed = I(names(fixef(last))), theta = I(theta_names(last)),
       truth = lapply(s$truth, function(v) I(unname(v))), singular_reml = mean(table$singular[reml] == 1),
       singular_ml = mean(table$singular[!reml] == 1))
}
to_json <- function(value, file) write_json(value, file.path(FOLDER, file), auto_unbox = TRUE, digits = 12, pretty = TRUE)

## ------------------------------------------------------------------ bootstrap
estimates <- function(fit) {
  v <- as.data.frame(VarCorr(fit))
  c(beta = unname(fixef(fit)), sd = v$sdcor[1:2], corr = v$sdcor[3], sigma = sigma(fit), singular = isSingular(fit, tol = SINGULAR))
}
LEVELS <- c(0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.995)
# Quantiles (R's type 7) with standard errors from the order statistics a binomial standard deviation away.
quantile_table <- function(x) {
  x <- x[is.finite(x)]; n <- length(x)
  off <- sqrt(LEVELS * (1 - LEVELS) / n)
  up <- quantile(x, pmin(LEVELS + off, 1), names = FALSE); down <- quantile(x, pmax(LEVELS - off, 0), names = FALSE)
  list(count = n, mean = mean(x), sd = sd(x), levels = LEVELS, quantiles = quantile(x, LEVELS, names = FALSE),
       quantile_se = (up - down) / 2, lower = quantile(x, 0.025, names = FALSE), upper = quantile(x, 0.975, names = FALSE))
}
summarise <- function(draws, fit, how, seconds) {
  labels <- c("(Intercept)", "Days", "sd (Intercept)", "sd Days", "corr", "sigma")
  at <- estimates(fit)
  list(how = how, replicates = nrow(draws), seconds = round(seconds), singular_share = mean(draws[, 7]),
       singular_share_se = sqrt(mean(draws[, 7]) * (1 - mean(draws[, 7])) / nrow(draws)),
       corr_undefined = sum(!is.finite(draws[, 5])), corr_at_1 = sum(draws[, 5] > 1 - 1e-6, na.rm = TRUE),
       corr_at_minus_1 = sum(draws[, 5] < -1 + 1e-6, na.rm = TRUE),
       parameters = setNames(lapply(1:6, function(i) c(list(estimate = unname(at[i])), quantile_table(draws[, i]))), labels))
}
make_bootstrap <- function(replicates) {
  data <- read("sleepstudy.csv")[, c("Reaction", "Days", "Subject")]
  settings <- do.call(lmerControl, quiet)
  reml <- lmer(sleep_formula, data, control = settings); ml <- update(reml, REML = FALSE)
  began <- proc.time()[[3]]
  Y <- as.matrix(simulate(reml, replicates, seed = 20270))
  draws <- t(apply(Y, 2, function(y) { data$Reaction <- y; estimates(fresh(sleep_formula, data, TRUE, settings)) }))
  first <- summarise(draws, reml, paste("simulate() from the REML fit of sleepstudy,", deparse(sleep_formula),
    "then a fresh lmer() by REML of every response (refit() of lme4 1.1-31 is wrong under REML)"), proc.time()[[3]] - began)
  began <- proc.time()[[3]]
  boot <- suppressMessages(suppressWarnings(bootMer(ml, estimates, nsim = replicates, seed = 20271, type = "parametric", use.u = FALSE)))
  second <- summarise(boot$t, ml, paste("bootMer(type = 'parametric', use.u = FALSE) of the ML fit of sleepstudy,",
    deparse(sleep_formula), "which refits by refit()"), proc.time()[[3]] - began)
  to_json(list(software = paste("R", getRversion(), "lme4", packageVersion("lme4")), made_by = "make/refits.R",
    note = paste("lower and upper are the limits of 95% percentile intervals; quantile_se are Monte-Carlo standard errors of the",
                 "quantiles, half the distance of the order statistics sqrt(p (1 - p) / replicates) above and below p.",
                 "Replicates with an undefined correlation (a zero standard deviation) are left out of corr."),
    formula = deparse(sleep_formula), reml = first, ml = second), "bootstrap.json")
}

## ------------------------------------------------------------------ run
asked <- commandArgs(trailingOnly = TRUE)
dir.create(FOLDER, showWarnings = FALSE)
if (!length(asked) || "fits" %in% asked) {
  designs <- lapply(setNames(names(SETS), names(SETS)), make_fits)
  to_json(list(software = paste("R", getRversion(), "lme4", packageVersion("lme4")), made_by = "make/refits.R",
    note = paste("fits: best of NLopt's and minqa's BOBYQA with tight tolerances, then Newton steps with differences;",
                 "singular is lme4's isSingular(tol = 1e-4); theta is lme4's, its first column zero if the first variance is"),
    sets = designs), "designs.json")
}
if (!length(asked) || "bootstrap" %in% asked) make_bootstrap(10000)
