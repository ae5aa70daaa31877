"""Labelled data: a reader for every set that tasks train and score on, each value checked on the way in.

Every reader takes the data folder (a path, or None for the environment variable PROTEINLM_DATA) and returns frozen
records with an `id` and `residues`. What cannot be used is an `InputError` with file and line; a missing file is one
line that says how to get it. Needs NumPy only. The modules, and what to call in them:

    sources              SOURCES: {key: Source(path, holds, origin, licence, redistribute, how)}
                         data_folder(given), locate(folder, key), missing(folder, keys), digest(path)
    secondary_structure  read_netsurfp(folder), read_cb513(folder)
                             -> SecondaryStructureChain(id, split, residues, ss3, ss8, mask)
                             .ss3_classes(), .ss8_classes() -> int8 (L,), -1 where a residue does not count
                         secondary_structure_splits(folder) -> .train, .validation, .test, .removed
                         SS3, SS8 (class orders), three_states(ss8), class_numbers(letters, order)
    domains              read_scop(folder) -> ScopDomain(id, sccs, residues, source, tape_split, coverage)
                         read_cath(folder) -> CathDomain(id, cath, residues, cluster, coverage)
                             both: .fold, .superfamily, .family
                         without_excluded_folds(domains), EXCLUDED_FOLDS
    chains               read_chains(folder) -> PdbChain(id, start, residues, ss8, cluster, cath, scop_sid, scop_sccs,
                             ec_class, ec_numbers); .ss8_classes(), .keys(level)
                         read_coordinates(folder, chains) -> Coordinates: id in it, .of(id) float32 (L, 3) in Å,
                             .contacts(id) int8 (L, L) of 1, 0, -1
                         contact_map(coordinates, cutoff), distances(coordinates)
    localisation         read_deeploc(folder) -> LocalisedProtein(id, split, location, membrane, residues, source)
                             .location_class, .membrane_class (None where there is none), .membrane_is_weak
                         localisation_splits(folder) -> .train, .test, .removed; for_q10(proteins), for_q2(proteins)
                         LOCATIONS (class order)
    variants             assay_names(folder), read_assay(folder, name), read_assays(folder)
                             -> Assay(name, wild_type, mutants, scores, source, note), .main_score, .substitutions(),
                             .num_substitutions(), .has_stop(), .without_stops(), .select(mask)
                         parse_variant(text) -> (Substitution(wild, position, mutant), ...)
                         check_variant(substitutions, wild_type), mutate(wild_type, variant)
    conservation         read_conservation(folder) -> ConservationChain(id, split, residues, conservation), .classes()
    annotations          read_orthologs(folder) -> OrthologousProtein(id, group, species, residues)
                         read_kingdoms(folder) -> KingdomProtein(id, kingdom, ec_number, residues, source),
                             .kingdom_class, .enzyme_class; read_enzymes(folder) -> Enzyme(id, ec_numbers)
    alignments           Alignment(id, names, rows): .num_columns, .residues(row), .residue_of_column(row), .matrix()
                         read_a3m(path), read_stockholm(path), read_chain_alignments(folder, chains) -> {chain: ...}
                         read_balifam(folder, size) -> BalifamFamily(id, homologs, reference)
                         read_pfam(folder) -> PfamFamily(id, alignment, pairs, distances)
                         read_example_alignments(folder) -> {file: Alignment}
    splits               split_folds(keys, num_folds, seed, weights) -> Folds: .of_record, .train(k), .test(k), .sizes()
                         structural_folds(chains, level, num_folds, seed), linked_groups(keys), check_folds(folds, keys)
                         level_key(code, level)
    published            read_astral(path), read_deeploc_fasta(path), read_netsurfp_csv(path, split),
                         read_netsurfp_npz(path, split), read_proteingym(path, wild_type): the same records
    structures           read_structure(path, secondary_structure) -> StructureChain(id, residues, numbers, cb, ...),
                             .contacts(); needs biotite (extra `structures`)
    leakage              nearest_training(train, test, LeakageOptions(method, e_value, candidates, threads))
                             -> LeakageReport(rows, method), .above(identity, coverage)
                             rows: Nearest(id, nearest, identity, coverage, e_value, bits); nearest None: no relative
                         score_by_identity(rows, {id: score}, edges), read_proteins(fasta), write_report, read_report
    check                CHECKS: {key: function of the folder that reads a set and says what it holds} (`plm data`)
    hierarchy            scop_level(sccs, level), cath_level(cath, level)
    tables               read_records(path, columns, make), read_rows(path, columns), text_lines(path)
                         remove_shared(train, test) -> (kept, removed): no sequence or id of the test set in training
"""
