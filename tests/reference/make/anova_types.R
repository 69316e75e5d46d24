# Analysis of variance of types I, II and III of unbalanced data by lmerTest: anova_types.json.
# From the folder above: Rscript make/anova_types.R
suppressMessages({library(lmerTest); library(jsonlite)})
tight <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-9, maxfun = 1e5))
read <- function(name, factors) {
  d <- read.csv(file.path("data", paste0(name, ".csv")), colClasses = setNames(rep("factor", length(factors)), factors))
  d
}
table_of <- function(m, type, ddf) {
  a <- as.data.frame(suppressMessages(anova(m, type = type, ddf = ddf)))
  list(type = type, ddf = ddf, term = rownames(a), sumsq = a[["Sum Sq"]], meansq = a[["Mean Sq"]], numdf = a[["NumDF"]],
       dendf = a[["DenDF"]], F = a[["F value"]], p = a[["Pr(>F)"]])
}
case <- function(id, file, formula, factors, categorical, dropped, contrasts = NULL) {
  d <- read(file, factors)[-(dropped + 1), ]
  m <- suppressMessages(lmer(as.formula(formula), d, control = tight, contrasts = if (!is.null(contrasts)) lapply(contrasts, function(k) paste0("contr.", k))))
  tables <- list()
  for (type in 1:3) for (ddf in c("Satterthwaite", "Kenward-Roger")) tables[[length(tables) + 1]] <- table_of(m, type, ddf)
  list(id = id, file = paste0("data/", file, ".csv"), formula = formula, factors = I(factors), categorical = I(categorical),
       dropped = dropped, contrasts = if (is.null(contrasts)) setNames(list(), character()) else contrasts, tables = tables)
}
cake <- read("cake", c("replicate", "recipe", "temperature"))
late <- which(as.integer(cake$replicate) %% 4 == 1 & cake$temperature %in% c("205", "225") & cake$recipe != "B") - 1
empty <- which((cake$recipe == "A" & cake$temperature == "175") | (cake$recipe == "C" & cake$temperature == "215")) - 1
C <- c("replicate", "recipe", "temperature")
orthodont <- read("Orthodont", c("Subject", "Sex"))
young <- which(as.integer(orthodont$Subject) %% 3 == 0 & orthodont$age < 11) - 1
oats <- read("Oats", c("Block", "Variety", "nitroF"))
some <- which((seq_len(nrow(oats)) %% 7 == 3) | (oats$Variety == "Victory" & oats$nitroF == "n0" & oats$Block %in% c("I", "II"))) - 1
out <- list(
  case("cake_unbalanced", "cake", "angle ~ recipe * temperature + (1 | recipe:replicate)", C, c("recipe", "temperature"), late),
  case("cake_sum", "cake", "angle ~ recipe * temperature + (1 | recipe:replicate)", C, c("recipe", "temperature"), late,
       list(recipe = "sum", temperature = "poly")),
  case("cake_empty", "cake", "angle ~ recipe * temperature + (1 | recipe:replicate)", C, c("recipe", "temperature"), sort(union(late, empty)),
       list(recipe = "helmert", temperature = "sum")),
  case("orthodont_slope", "Orthodont", "distance ~ age * Sex + (age | Subject)", c("Subject", "Sex"), "Sex", young),
  case("oats_no_intercept", "Oats", "yield ~ 0 + Variety * nitroF + (1 | Block/Variety)", c("Block", "Variety", "nitroF"), c("Variety", "nitroF"), some),
  case("oats_covariate", "Oats", "yield ~ Variety * nitro + (1 | Block/Variety)", c("Block", "Variety", "nitroF"), "Variety", some, list(Variety = "sum")))
write_json(list(software = paste("R", getRversion(), "lme4", packageVersion("lme4"), "lmerTest", packageVersion("lmerTest"), "pbkrtest", packageVersion("pbkrtest")),
                cases = out), "anova_types.json", digits = 12, auto_unbox = TRUE)
